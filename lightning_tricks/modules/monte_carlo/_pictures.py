"""What a test of a classifier with dropout off and on looks like."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks._base import log_figure
from lightning_tricks.modules.monte_carlo._metrics import Answers
from lightning_tricks.uncertainty import calibration_bins, risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More points than a picture has columns of pixels show nothing new.
_POINTS = 600
_STATES = {"off": "dropout off", "on": "dropout on"}


def log_answers(trainer: Trainer, prefix: str, answers: Mapping[str, Answers]) -> None:
    """Write calibration, ranking and distribution of the answers to the loggers, as pictures."""
    if not answers or not wants_pictures(trainer):
        return
    if any(not len(one.confidence) or bool(one.confidence.isnan().any()) for one in answers.values()):
        return
    answers = {state: Answers(*(x.cpu() for x in one)) for state, one in answers.items()}
    for name, figure in answer_figures(answers).items():
        log_figure(trainer, f"{prefix}/{name}", figure)


def wants_pictures(trainer: Trainer) -> bool:
    """Whether anybody looks at what this rank draws."""
    return trainer.is_global_zero and bool(trainer.loggers) and not trainer.sanity_checking


def answer_figures(answers: Mapping[str, Answers]) -> dict[str, "Figure"]:
    """Return the pictures by name."""
    from lightning_tricks.plots import reliability_diagram, risk_coverage_curve, uncertainty_histogram

    bins = [calibration_bins(one.confidence, ~one.wrong) for one in answers.values()]
    curves = {_STATES[state]: _thinned(one.confidence, one.wrong) for state, one in answers.items()}
    on = answers["on"]
    groups = {"right": on.entropy[~on.wrong], "wrong": on.entropy[on.wrong]}
    return {
        "reliability": reliability_diagram(*bins, labels=[_STATES[state] for state in answers]),
        "risk_coverage": risk_coverage_curve(curves, optimal=_thinned(-on.wrong.float(), on.wrong)),
        "entropy": uncertainty_histogram(groups, name="entropy of the answers, dropout on (nats)"),
    }


def _thinned(confidence: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    coverage, risk = risk_coverage(confidence, wrong)
    shown = torch.linspace(0, len(risk) - 1, min(_POINTS, len(risk))).round().long()
    return coverage[shown], risk[shown]
