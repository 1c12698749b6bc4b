"""Callbacks: thin shells on Lightning's hooks."""
