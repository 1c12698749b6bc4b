"""One runnable module per claim: ``python -m benchmarks.NAME``."""
