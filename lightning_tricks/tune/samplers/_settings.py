"""The settings of a coarse-to-fine search, checked, and as plain JSON for the study's notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.tune.samplers._rounds import RoundPlan


@dataclass(frozen=True)
class CoarseToFineSettings:
    """What :class:`~lightning_tricks.CoarseToFineSampler` was told."""

    plan: RoundPlan
    shrink: float
    margin: float
    windows: dict[str, tuple[float, float]]

    @classmethod
    def checked(
        cls,
        n_trials: int,
        coarse: float,
        rounds: int,
        shrink: float,
        margin: float,
        windows: Mapping[str, Sequence[float]] | None,
    ) -> "CoarseToFineSettings":
        """Return the settings.

        Raises:
            UserInputError: for numbers out of range.

        Example:
            >>> CoarseToFineSettings.checked(64, 0.5, 4, 0.5, 0.2, {"lr": (1e-2, 1e-4)})
            Traceback (most recent call last):
            ...
            lightning_tricks._base._messages.UserInputError: the window of 'lr' must be (low, high) with low < high, ...
        """
        check_range("n_trials", n_trials, low=1)
        check_range("coarse", coarse, low=0, high=1, open_low=True)
        check_range("rounds", rounds, low=0)
        check_range("shrink", shrink, low=0, high=1, open_low=True)
        check_range("margin", margin, low=0, high=0.5, open_high=True)
        checked = {}
        for name, window in (windows or {}).items():
            if len(window) != 2 or not window[0] < window[1]:
                raise UserInputError(f"the window of {name!r} must be (low, high) with low < high, but got {window}.")
            checked[name] = (float(window[0]), float(window[1]))
        return cls(RoundPlan(int(n_trials), float(coarse), int(rounds)), float(shrink), float(margin), checked)

    def as_json(self) -> dict[str, Any]:
        """Return the settings as numbers, lists and dicts."""
        return {
            "n_trials": self.plan.n_trials,
            "coarse": self.plan.coarse,
            "rounds": self.plan.rounds,
            "shrink": self.shrink,
            "margin": self.margin,
            "windows": {name: list(window) for name, window in self.windows.items()},
        }

    @classmethod
    def from_json(cls, noted: Mapping[str, Any]) -> "CoarseToFineSettings":
        """Return what :meth:`as_json` wrote."""
        names = ("n_trials", "coarse", "rounds", "shrink", "margin", "windows")
        return cls.checked(*(noted[name] for name in names))
