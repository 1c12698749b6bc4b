"""Findings of a running training: each once, and only when it lasts."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lightning_tricks.diagnosis._evidence import Evidence, symptom_of
from lightning_tricks.diagnosis._finding import Finding, Severity
from lightning_tricks.diagnosis._thresholds import Thresholds
from lightning_tricks.diagnosis.rules._training import TRAINING_RULES

_GRAVITY: dict[Severity, int] = {"info": 0, "warning": 1, "error": 2}
_AT_ONCE = frozenset({"nonfinite"})


class TrainingWatch:
    """Runs all rules at every look, and tells each finding once, and once more if it becomes graver.

    A condition must last for some looks to become a finding; one that comes and goes has to start again.

    Args:
        thresholds: what the rules compare with.

    Example:
        >>> watch = TrainingWatch()
        >>> [finding.rule for finding in watch.look(Evidence(7, broken=(6, "net.2", "gradient")))]
        ['nonfinite']
        >>> watch.look(Evidence(8, broken=(6, "net.2", "gradient")))
        []
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.raised: dict[str, Finding] = {}
        self._held: dict[str, int] = {}

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, in the order in which they were made."""
        return list(self.raised.values())

    def look(self, evidence: Evidence) -> list[Finding]:
        """Run every rule, and return what is new."""
        evidence.symptom = symptom_of(evidence, self.thresholds)
        new = []
        for name, rule in TRAINING_RULES.items():
            finding = rule(evidence, self.thresholds)
            if finding is None:
                self._held[name] = 0
                continue
            self._held[name] = self._held.get(name, 0) + 1
            is_due = evidence.is_last or name in _AT_ONCE or self._held[name] >= self.thresholds.confirm
            if is_due and self._is_graver(finding):
                self.raised[name] = finding
                new.append(finding)
        return new

    def take(self, findings: Iterable[Finding]) -> None:
        """Take over findings that were made elsewhere (by another process)."""
        self.raised |= {finding.rule: finding for finding in findings}

    def _is_graver(self, finding: Finding) -> bool:
        known = self.raised.get(finding.rule)
        return known is None or _GRAVITY[finding.severity] > _GRAVITY[known.severity]

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"raised": [asdict(finding) for finding in self.raised.values()], "held": dict(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.raised = {finding["rule"]: Finding(**finding) for finding in state["raised"]}
        self._held = dict(state["held"])
