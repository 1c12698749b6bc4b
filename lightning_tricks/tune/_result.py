"""What a search found."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.tune.reporting._run_table import ordered

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Retrained:
    """One of the best settings, trained again with other seeds.

    Args:
        run: name of the trial's run.
        params: its hyperparameters.
        values: best value of each seed's training.
        mean: of the values.
        sd: sample standard deviation of the values.
    """

    run: str
    params: Mapping[str, Any]
    values: tuple[float, ...]
    mean: float
    sd: float


@dataclass(frozen=True)
class SearchResult:
    """What :func:`~lightning_tricks.search` found.

    Args:
        folder: where everything was written.
        study: the Optuna study, open for its pictures and samplers.
        method: the method that was used.
        reason: why.
        best_params: the winner: the best mean over seeds if some were trained again, else the best trial.
        best_value: the winner's mean over seeds, or the best trial's value.
        retrained: the best settings with their values over several seeds, the winner first.
        test: mean and standard deviation over the winner's seeds of each test metric; empty if there was no test.
        notes: sentences worth reading, such as limits that are too narrow.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study()
        >>> study.optimize(lambda trial: trial.suggest_int("width", 8, 8), n_trials=3)
        >>> print(SearchResult(Path("found"), study, "random", "asked for", study.best_params, study.best_value))
        3 results in found; best 8 with width=8
    """

    folder: Path
    study: "optuna.Study"
    method: str
    reason: str
    best_params: Mapping[str, Any]
    best_value: float
    retrained: tuple[Retrained, ...] = ()
    test: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[dict[str, str]]:
        """The lines of ``runs.csv``."""
        with (self.folder / "runs.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def explain(self) -> str:
        """Say in words what was found, and the windows of each round if there was a coarse-to-fine search.

        Such are ``method="coarse_to_fine"``, ``method="coarse+gp"`` (its coarse round) and a
        :class:`~lightning_tricks.CoarseToFineSampler` that was passed as the method.
        """
        from lightning_tricks.tune.reporting._explain import explain, holds_rounds

        lines = [f"Method {self.method}: {self.reason}."]
        if holds_rounds(self.study):
            lines.append(explain(self.study))
        lines += [f"{r.run} again: {r.mean:.4g} ± {r.sd:.2g} over {len(r.values)} seeds" for r in self.retrained]
        lines += [f"{name}: {mean:.4g} ± {sd:.2g} (winner only)" for name, (mean, sd) in self.test.items()]
        return "\n".join(lines)

    def pictures(self) -> "dict[str, Figure]":
        """Return the best value so far, the points (with the windows of a coarse-to-fine search), and what mattered.

        Names: ``progress``, ``points``, ``pairs`` if there are at least two numbers, ``parallel``, and ``importance``
        if there are at least ten results.
        """
        from lightning_tricks.tune.reporting._pictures import pictures_of

        return pictures_of(self.study)

    def save_pictures(self) -> list[Path]:
        """Write the pictures as PNG into the folder and return their paths."""
        paths = []
        for name, figure in self.pictures().items():
            path = self.folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            paths.append(path)
        return paths

    def to_html(self, path: str | Path | None = None) -> Path:
        """Write one page that needs nothing but itself: the winner, the windows, the pictures and all runs.

        Args:
            path: ``report.html`` in the folder if None.
        """
        from lightning_tricks.tune.reporting._page import write_report

        path = self.folder / "report.html" if path is None else Path(path)
        write_report(self, path)
        return path

    def __str__(self) -> str:
        found = ", ".join(f"{name}={value!r}" for name, value in self.best_params.items())
        return f"{len(ordered(self.study))} results in {self.folder}; best {self.best_value:.4g} with {found}"
