"""K-fold cross-validation and its result."""
