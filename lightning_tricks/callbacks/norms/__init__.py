"""Norms of weights, gradients and updates."""
