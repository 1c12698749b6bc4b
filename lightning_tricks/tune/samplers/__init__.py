"""Samplers: which point a search tries next."""
