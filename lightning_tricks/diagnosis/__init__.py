"""Findings: what is wrong with a run, where, and the cure."""
