"""Findings: what is wrong with a run, where, and the cure."""

from lightning_tricks.diagnosis._finding import Finding as Finding
from lightning_tricks.diagnosis._finding import Severity as Severity
