"""Learning rates: plateau reductions and the range test."""
