"""Rules of the diagnosis: pure functions from evidence to findings."""
