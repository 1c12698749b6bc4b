"""The tasks of the search benchmark: six families of surrogate losses and two trainings of scikit-learn's nets.

A surrogate is a closed-form "validation loss" in nats whose optimum every seed draws uniformly in the middle 90 % of
each range (70 % for the bimodal one); chance level is 2.3, and what a search sees carries Gaussian noise of 0.01. The
quality of a search is the simple regret: the true loss of the trial it would choose, minus the smallest loss.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHANCE, FLOOR, NOISE = 2.3, 0.1, 0.01


@dataclass(frozen=True)
class Dim:
    """One hyperparameter: its limits, its scale, and whether it is a whole number."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, unit: float) -> Any:
        """Return the value at a place in [0, 1]."""
        a, b = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = a + unit * (b - a)
        value = math.exp(value) if self.log else value
        return min(max(round(value), int(self.low)), int(self.high)) if self.whole else value

    def unit(self, value: float) -> float:
        """Return the place of a value in [0, 1]."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def suggest(self, trial: Any, name: str) -> Any:
        """Ask an Optuna trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Task:
    """A space, what a search sees (value) and what counts (score, smaller is better, 0 is perfect for surrogates)."""

    space: dict[str, Dim]
    run: Callable[[dict[str, Any], int], tuple[float, float]]  # parameters, trial number -> value, score
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)


def _surrogate(space: dict[str, Dim], loss: Callable[..., float], seed: int, **more: Any) -> Task:
    def run(params: dict[str, Any], number: int) -> tuple[float, float]:
        true = loss(**params)
        noise = np.random.default_rng([seed, number, 77]).normal(0, NOISE)
        return true + noise, true - FLOOR

    return Task(space, run, **more)


def _saturating(q: float) -> float:
    """Bend a quadratic so that it ends at chance level."""
    return FLOOR + (CHANCE - FLOOR) * (1 - math.exp(-q / (CHANCE - FLOOR)))


def _optimum(seed: int, family: str, dims: int, middle: float = 0.9) -> np.ndarray:
    rng = np.random.default_rng([seed, *family.encode()])
    return 0.5 + middle * (rng.random(dims) - 0.5)


def valley(seed: int) -> Task:
    """A narrow valley in learning rate and weight decay; a learning rate 1.5 decades too high diverges."""
    space = {"lr": Dim(1e-6, 1, log=True), "wd": Dim(1e-7, 1e-1, log=True), "width": Dim(16, 1024, True, True)}
    best = _optimum(seed, "valley", 3)

    def loss(lr: float, wd: float, width: int) -> float:
        a, b = 6 * (space["lr"].unit(lr) - best[0]), 6 * (space["wd"].unit(wd) - best[1])
        c = space["width"].unit(width) - best[2]
        return CHANCE if a > 1.5 else _saturating(1.0 * (a + 0.5 * b) ** 2 + 0.1 * b**2 + 1.0 * c**2)

    return _surrogate(space, loss, seed)


def low_dim(seed: int) -> Task:
    """Six hyperparameters of which two matter."""
    space = {f"x{i}": Dim(0, 1) for i in range(6)}
    best = _optimum(seed, "low_dim", 6)

    def loss(**x: float) -> float:
        d = [x[f"x{i}"] - best[i] for i in range(6)]
        return _saturating(60 * d[1] ** 2 + 25 * d[4] ** 2 + 0.05 * sum(v * v for v in d))

    return _surrogate(space, loss, seed)


def ridge(seed: int) -> Task:
    """A ridge of constant lr / (1 - momentum), and three milder hyperparameters."""
    space = {
        "lr": Dim(1e-6, 1, log=True),
        "one_minus_momentum": Dim(1e-3, 1, log=True),
        "dropout": Dim(0, 0.9),
        "wd": Dim(1e-7, 1e-1, log=True),
        "batch": Dim(8, 1024, True, True),
    }
    best = _optimum(seed, "ridge", 5)

    def loss(**p: float) -> float:
        u = {name: dim.unit(p[name]) - o for (name, dim), o in zip(space.items(), best, strict=True)}
        along = 6 * u["lr"] - 3 * u["one_minus_momentum"]
        mild = 1.2 * u["dropout"] ** 2 + 0.6 * u["wd"] ** 2 + 0.6 * u["batch"] ** 2
        return _saturating(0.8 * along**2 + 0.8 * u["one_minus_momentum"] ** 2 + mild)

    return _surrogate(space, loss, seed)


def plateau(seed: int) -> Task:
    """Four hyperparameters; most of the space is at chance level."""
    space = {f"x{i}": Dim(0, 1) for i in range(4)}
    best = _optimum(seed, "plateau", 4)

    def loss(**x: float) -> float:
        q = sum(((x[f"x{i}"] - best[i]) / 0.22) ** 2 for i in range(4))
        return CHANCE - (CHANCE - FLOOR) * math.exp(-q / 2)

    return _surrogate(space, loss, seed)


def bimodal(seed: int) -> Task:
    """A broad basin that is 0.9 worse than a narrow one elsewhere."""
    space = {f"x{i}": Dim(0, 1) for i in range(3)}
    narrow, broad = _optimum(seed, "narrow", 3, 0.7), _optimum(seed, "broad", 3, 0.7)

    def loss(**x: float) -> float:
        point = np.array([x[f"x{i}"] for i in range(3)])
        depth = CHANCE - FLOOR
        near = depth * math.exp(-(((point - narrow) / 0.12) ** 2).sum() / 2)
        far = (depth - 0.9) * math.exp(-(((point - broad) / 0.35) ** 2).sum() / 2)
        return CHANCE - max(near, far)

    return _surrogate(space, loss, seed)


def misplaced(seed: int) -> Task:
    """The user's first window for the learning rate, two decades wide, lies 0.3 to 1.5 decades off the optimum."""
    rng = np.random.default_rng([seed, 5])
    space = {"lr": Dim(1e-6, 1, log=True), "wd": Dim(1e-7, 1e-1, log=True), "width": Dim(16, 1024, True, True)}
    best = _optimum(seed, "misplaced", 3)
    decade = -6 + 6 * best[0]
    off, side = 0.3 + 1.2 * rng.random(), rng.choice([-1, 1])
    low, high = (decade + off, decade + off + 2) if side > 0 else (decade - off - 2, decade - off)
    if high > 0 or low < -6:  # no room on this side of the hard limits
        low, high = (decade - off - 2, decade - off) if side > 0 else (decade + off, decade + off + 2)

    def loss(lr: float, wd: float, width: int) -> float:
        a = 6 * (space["lr"].unit(lr) - best[0])
        b, c = space["wd"].unit(wd) - best[1], space["width"].unit(width) - best[2]
        return _saturating(1.2 * a**2 + 1.5 * b**2 + 1.5 * c**2)

    return _surrogate(space, loss, seed, windows={"lr": (10.0**low, 10.0**high)})


def digits(seed: int) -> Task:
    """Log loss of an MLP trained by SGD on scikit-learn's digits; the score is the validation log loss itself."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    train, val = _split(len(y), seed)
    space = {
        "lr": Dim(1e-4, 10, log=True),
        "alpha": Dim(1e-7, 1, log=True),
        "hidden": Dim(8, 128, True, True),
        "momentum": Dim(0, 0.99),
    }

    def run(params: dict[str, Any], number: int) -> tuple[float, float]:
        net = MLPClassifier(
            hidden_layer_sizes=(params["hidden"],),
            solver="sgd",
            learning_rate_init=params["lr"],
            alpha=params["alpha"],
            momentum=params["momentum"],
            batch_size=64,
            max_iter=8,
            random_state=seed,
        )
        return _fitted(lambda: log_loss(y[val], _finite(net.fit(x[train] / 16, y[train]).predict_proba(x[val] / 16))))

    return Task(space, run)


def diabetes(seed: int) -> Task:
    """Mean squared error of an MLP trained by Adam on scikit-learn's diabetes; the score is that error itself."""
    from sklearn.datasets import load_diabetes
    from sklearn.neural_network import MLPRegressor

    x, y = load_diabetes(return_X_y=True)
    train, val = _split(len(y), seed)
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    space = {
        "lr": Dim(1e-5, 1, log=True),
        "alpha": Dim(1e-6, 10, log=True),
        "hidden": Dim(4, 64, True, True),
        "batch": Dim(8, 128, True, True),
    }

    def run(params: dict[str, Any], number: int) -> tuple[float, float]:
        net = MLPRegressor(
            hidden_layer_sizes=(params["hidden"],),
            learning_rate_init=params["lr"],
            alpha=params["alpha"],
            batch_size=params["batch"],
            max_iter=15,
            random_state=seed,
        )
        return _fitted(lambda: float(np.mean((_finite(net.fit(x[train], y[train]).predict(x[val])) - y[val]) ** 2)))

    return Task(space, run)


def _split(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([seed, 11]).permutation(size)
    return order[: int(0.6 * size)], order[int(0.6 * size) : int(0.8 * size)]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("diverged")
    return values


def _fitted(fit: Callable[[], float]) -> tuple[float, float]:
    """Return the value twice; what diverges is as bad as it gets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = min(fit(), 10.0)
        except ValueError as error:
            if "diverged" not in str(error) and "non-finite" not in str(error):
                raise
            value = 10.0
    return value, value


SURROGATES = {f.__name__: f for f in (valley, low_dim, ridge, plateau, bimodal, misplaced)}
REAL = {f.__name__: f for f in (digits, diabetes)}
TASKS = {**SURROGATES, **REAL}
