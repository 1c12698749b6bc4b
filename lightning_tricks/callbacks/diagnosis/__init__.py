"""Diagnosis and preflight as callbacks."""
