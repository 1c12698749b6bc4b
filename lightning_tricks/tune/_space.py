"""What is searched: hyperparameters with limits or choices."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks._base import UserInputError, check_range

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Float:
    """A number between two limits.

    Args:
        low: smallest value.
        high: largest value, above ``low``.
        log: whether to search on the logarithmic scale (``low`` must be positive), as one should for learning rates.
        step: distance of the values, if only some are wanted; not together with ``log``.
        window: the first window (low, high) of a coarse-to-fine search, inside of the limits; it may be left.

    Raises:
        UserInputError: for limits that contradict each other.

    Example:
        >>> Float(1e-5, 1e-1, log=True).values(3)
        [1e-05, 0.001, 0.1]
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_limits(self)

    def suggest(self, trial: "optuna.Trial", name: str) -> float:
        """Ask an Optuna trial for a value."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def values(self, levels: int) -> list[float]:
        """Return values for a grid: all steps, or this many at equal distances on the scale."""
        if self.step is not None:
            count = int((self.high - self.low) / self.step + 1e-9) + 1
            return [float(f"{self.low + i * self.step:.12g}") for i in range(count)]  # 0.3, not 0.30000000000000004
        return _spread(self.low, self.high, levels, log=self.log)


@dataclass(frozen=True)
class Int:
    """A whole number between two limits, both of them possible.

    Args:
        low: smallest value.
        high: largest value, above ``low``.
        log: whether to search on the logarithmic scale (``low`` must be positive), as one should for widths.
        step: distance of the values; 1 with ``log``.
        window: the first window (low, high) of a coarse-to-fine search, inside of the limits; it may be left.

    Raises:
        UserInputError: for limits that contradict each other.

    Example:
        >>> Int(1, 7, step=2).values(2), Int(8, 512, log=True).values(3)
        ([1, 3, 5, 7], [8, 64, 512])
    """

    low: int
    high: int
    log: bool = False
    step: int = 1
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if any(isinstance(x, bool) or x != int(x) for x in (self.low, self.high, self.step)):
            raise UserInputError(f"Int needs whole numbers, but got {self}. Use Float for others.")
        _check_limits(self)

    def suggest(self, trial: "optuna.Trial", name: str) -> int:
        """Ask an Optuna trial for a value."""
        return trial.suggest_int(name, int(self.low), int(self.high), step=self.step, log=self.log)

    def values(self, levels: int) -> list[int]:
        """Return values for a grid: all of them if they are few, else this many at equal distances."""
        everything = range(int(self.low), int(self.high) + 1, self.step)
        if len(everything) <= max(levels, 4):
            return list(everything)
        return sorted({round(x) for x in _spread(self.low, self.high, levels, log=self.log)})


@dataclass(frozen=True)
class Choice:
    """One of several values without an order.

    Args:
        options: strings, numbers, booleans or None; at least one, each once.

    Raises:
        UserInputError: if there is none, or one twice.

    Example:
        >>> Choice(["adam", "sgd"]).values(1)
        ['adam', 'sgd']
    """

    options: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.options, str) or len(self.options) == 0:
            raise UserInputError(f"Choice needs a list with at least one option, but got {self.options!r}.")
        if len({repr(option) for option in self.options}) < len(self.options):
            raise UserInputError(f"Choice needs different options, but got {list(self.options)}.")

    def suggest(self, trial: "optuna.Trial", name: str) -> Any:
        """Ask an Optuna trial for a value."""
        return trial.suggest_categorical(name, list(self.options))

    def values(self, levels: int) -> list[Any]:
        """Return all options."""
        return list(self.options)


Hyperparameter = Float | Int | Choice
Space = Mapping[str, Hyperparameter] | Callable[["optuna.Trial"], Mapping[str, Any]]


def check_space(space: Any) -> Space:
    """Return a space: a mapping of hyperparameters, a function of the trial, or the path of a YAML file with a mapping.

    Raises:
        UserInputError: for an empty space or entries that are no hyperparameters.

    Example:
        >>> check_space({"lr": [1e-4, 1e-2]})
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: the hyperparameter 'lr' must be a Float, an Int or a ...
    """
    if isinstance(space, str | Path):
        space = read_space(Path(space))
    if callable(space):
        return space  # type: ignore[no-any-return]
    if not isinstance(space, Mapping) or not space:
        raise UserInputError(f"space must hold at least one hyperparameter, but got {space!r}.")
    for name, entry in space.items():
        if not isinstance(entry, Float | Int | Choice):
            raise UserInputError(
                f"the hyperparameter {name!r} must be a Float, an Int or a Choice, but got {entry!r}. "
                f"Write for example Float(1e-5, 1e-1, log=True) or Choice([...])."
            )
    return dict(space)


def read_space(path: Path) -> dict[str, Hyperparameter]:
    """Read a space from YAML: a list is a choice; ``{low: 1e-5, high: 0.1, log: true}`` a number, whole if both are.

    Raises:
        UserInputError: if the file is no such mapping.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserInputError(f"the space {path} cannot be read: {error}") from error
    return space_of(entries, f"the space {path}")


def space_of(entries: Any, what: str) -> dict[str, Hyperparameter]:
    """Return a space out of plain lists and mappings.

    Args:
        entries: what a YAML file holds.
        what: where they are from, the subject of the sentence.

    Raises:
        UserInputError: if they are no such mapping.

    Example:
        >>> space_of({"width": {"low": 8, "high": 64}, "optimizer": ["adam", "sgd"]}, "the space")["width"].high
        64
    """
    if not isinstance(entries, Mapping):
        raise UserInputError(f"{what} must be a mapping of names, but holds {entries!r}.")
    return {name: _from_yaml(name, entry) for name, entry in entries.items()}


def _from_yaml(name: str, entry: Any) -> Hyperparameter:
    if isinstance(entry, list):
        return Choice(entry)
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= {"low", "high", "log", "step", "window"}:
        raise UserInputError(
            f"the hyperparameter {name!r} must be a list or have low, high and perhaps log, step, window, "
            f"but got {entry!r}."
        )
    numbers = {k: v if k == "log" else _numbers(name, v) for k, v in entry.items()}
    whole = all(isinstance(numbers[k], int) for k in ("low", "high"))
    return Int(**numbers) if whole else Float(**numbers)


def _numbers(name: str, value: Any) -> Any:
    """Return a number or a pair of them; YAML takes 1e-5, without a point, for a string."""
    if isinstance(value, list):
        return tuple(_numbers(name, item) for item in value)
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise UserInputError(f"the hyperparameter {name!r} needs numbers, but got {value!r}.") from None


def _check_limits(entry: Float | Int) -> None:
    if not (math.isfinite(entry.low) and math.isfinite(entry.high) and entry.low < entry.high):
        raise UserInputError(f"low must be below high, both finite, but got {entry}.")
    if entry.log:
        check_range("low on a logarithmic scale", entry.low, low=0, open_low=True)
        if entry.step not in (None, 1):
            raise UserInputError(f"step cannot be combined with log, but got {entry}.")
    if entry.step is not None:
        check_range("step", entry.step, low=0, open_low=True)
    if entry.window is not None and not entry.low <= entry.window[0] < entry.window[1] <= entry.high:
        raise UserInputError(f"window must be (low, high) inside of the limits, but got {entry}.")


def _spread(low: float, high: float, levels: int, *, log: bool) -> list[float]:
    if levels == 1:
        return [math.sqrt(low * high) if log else (low + high) / 2]
    shares = [i / (levels - 1) for i in range(levels)]
    inner = [low * (high / low) ** u if log else low + u * (high - low) for u in shares[1:-1]]
    return [low, *(float(f"{x:.6g}") for x in inner), high]
