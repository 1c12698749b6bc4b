"""Metrics of uncertainty: pure functions and torchmetrics classes."""
