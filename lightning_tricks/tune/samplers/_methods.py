"""Search methods by name, and which one to take."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.tune._space import Choice, Hyperparameter, Int, Space
from lightning_tricks.tune.samplers._coarse_to_fine import CoarseToFineSampler
from lightning_tricks.tune.samplers._grid import SlotGridSampler
from lightning_tricks.tune.samplers._random import SlotRandomSampler
from lightning_tricks.tune.samplers._reseeded import ReseededSampler

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler

Method = Literal["auto", "grid", "random", "coarse_to_fine", "gp", "tpe", "coarse+gp"]
METHODS = ("auto", "grid", "random", "coarse_to_fine", "gp", "tpe", "coarse+gp")


@dataclass(frozen=True)
class Chosen:
    """A method.

    Args:
        name: of the method.
        reason: why it was taken.
        sampler: what asks for points.
        then: what asks after ``first`` trials, if anything.
        first: number of trials of ``sampler``.
        trials: number of trials that the method can use at most.
    """

    name: str
    reason: str
    sampler: "BaseSampler"
    trials: int
    then: "BaseSampler | None" = None
    first: int = 0


def choose(method: "Method | BaseSampler", space: Space, *, trials: int, seed: int, grace: float = 120.0) -> Chosen:
    """Return the method for a search.

    Raises:
        UserInputError: for an unknown name, a sampler that only works inside of ``study.optimize``, or a grid over a
            function.
    """
    from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler

    if isinstance(method, GridSampler | BruteForceSampler):
        raise UserInputError(
            f"{type(method).__name__} ends with study.stop(), which works in study.optimize() only, and loses points "
            "that fail. Give method='grid'."
        )
    if isinstance(method, BaseSampler):
        return Chosen(type(method).__name__, "given", method, trials)
    check_choice("method", method, METHODS)
    reason = "asked for"
    if method == "auto":
        method, reason = _recommended(space, trials)
    if method == "grid":
        return _grid(space, trials, seed, reason, grace)
    return _sampler(method, space, trials, seed, reason, grace)


def _recommended(space: Space, trials: int) -> tuple[Method, str]:
    if not callable(space) and all(isinstance(entry, Choice | Int) for entry in space.values()):
        points = math.prod(len(entry.values(trials)) for entry in space.values())
        if points <= trials and len(space) <= 3:
            return "grid", f"{len(space)} hyperparameters with {points} points in all fit into {trials} trials"
    reason = (
        "it beats grid and random search at equal cost, gives the same points on any number of workers, and shows why"
    )
    if trials >= 30:
        reason += "; with 30 or more trials one after another, method='gp' may find better values"
    return "coarse_to_fine", reason


def _grid(space: Space, trials: int, seed: int, reason: str, grace: float) -> Chosen:
    if callable(space):
        raise UserInputError("method='grid' needs a dict of hyperparameters, but got a function of the trial.")
    levels = 1
    while _points(space, levels + 1) <= trials and _points(space, levels + 1) > _points(space, levels):
        levels += 1
    if _points(space, levels) > trials:
        raise UserInputError(
            f"the grid has {_points(space, levels)} points, but {trials=}. Give more trials, fewer values, or another "
            "method."
        )
    grid = {name: entry.values(levels) for name, entry in space.items()}
    sampler = SlotGridSampler(grid, seed=seed, retries=0, grace=grace)
    return Chosen("grid", reason, sampler, min(trials, len(sampler)))


def _points(space: Mapping[str, Hyperparameter], levels: int) -> int:
    return math.prod(len(entry.values(levels)) for entry in space.values())


def _gp(seed: int) -> "optuna.samplers.GPSampler":
    import optuna

    with warnings.catch_warnings():  # before version 5, Optuna calls it experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed)


def _sampler(method: str, space: Space, trials: int, seed: int, reason: str, grace: float) -> Chosen:
    import optuna

    if method == "random":
        return Chosen(method, reason, SlotRandomSampler(seed=seed, grace=grace), trials)
    if method == "tpe":
        return Chosen(method, reason, ReseededSampler(lambda key: optuna.samplers.TPESampler(seed=key), seed), trials)
    gp = ReseededSampler(_gp, seed)
    if method == "gp":
        return Chosen(method, reason, gp, trials)
    windows = {} if callable(space) else {n: w for n, e in space.items() if (w := getattr(e, "window", None))}
    sampler = CoarseToFineSampler(trials, seed=seed, windows=windows, grace=grace)
    if method == "coarse_to_fine":
        return Chosen(method, reason, sampler, trials)
    return Chosen(method, reason, sampler, trials, then=gp, first=sampler.plan.sizes[0])
