"""Measures of uncertainty: pure functions of the samples."""
