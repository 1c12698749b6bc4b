"""Early stopping and the best weights."""
