"""Predictors that average many passes: Monte-Carlo dropout and test-time augmentation."""
