"""What every check returns: one thing that is wrong, where, and what to do about it."""

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_tricks._base import UserInputError, check_choice

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        rule: stable name of the rule, such as ``"params-not-optimized"``; filter on it.
        severity: ``"error"``: the run is broken; ``"warning"``: it is likely worse than it need be; ``"info"``.
        where: layer, parameter, loader or batch in which it was seen.
        what: one sentence with the number that was seen and the number that was expected.
        cure: what to do about it.
        step: optimizer step after which it was seen, during training.

    Raises:
        UserInputError: for an unknown severity or an empty rule.

    Example:
        >>> print(Finding("zero-init", "error", "net.0", "all 20 weights are 0", "Draw them at random."))
        error zero-init in net.0: all 20 weights are 0. Draw them at random.
    """

    rule: str
    severity: Severity
    where: str
    what: str
    cure: str
    step: int | None = None

    def __post_init__(self) -> None:
        check_choice("severity", self.severity, get_args(Severity))
        if not self.rule:
            raise UserInputError("rule must be a name such as 'zero-init', but got an empty string.")

    def __str__(self) -> str:
        when = "" if self.step is None else f" (step {self.step})"
        return f"{self.severity} {self.rule} in {self.where}{when}: {self.what}. {self.cure}"
