"""Add tricks to a Trainer that somebody else's script has made."""

from collections.abc import Sequence
from inspect import signature

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, EarlyStopping, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks import callbacks
from lightning_tricks._base import UserInputError

GROUPS = ("recipe", "diagnosis")


class AttachTricks(Callback):
    """Adds the chosen callbacks when a Trainer really begins to fit; evaluation, dry runs and tuners get none.

    Args:
        tricks: ``"recipe"``, ``"diagnosis"``, or names of callbacks of this package.
        monitor: the metric that they watch. None takes the one that a callback of the script watches, else
            ``"val_loss"``.
    """

    def __init__(self, tricks: Sequence[str] = ("recipe",), monitor: str | None = None) -> None:
        super().__init__()
        self.tricks, self.monitor = tuple(tricks), monitor

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add what the Trainer does not have yet, before its checkpoint callbacks."""
        there: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
        if stage != "fit" or trainer.fast_dev_run or _is_tuning(there):  # type: ignore[attr-defined]
            return
        wanted = make_tricks(self.tricks, self.monitor or _monitor_of(there))
        added = [trick for trick in wanted if not any(_stands_for(own, trick) for own in there)]
        if not added:
            return
        rank_zero_info(f"lightning-tricks run: added {', '.join(type(trick).__name__ for trick in added)}.")
        others = [own for own in there if not isinstance(own, Checkpoint)]
        # A new list: Lightning is walking over the old one, and would otherwise set some of them up twice.
        trainer.callbacks = [*others, *added, *(own for own in there if isinstance(own, Checkpoint))]  # type: ignore[attr-defined]
        for trick in added:
            trick.setup(trainer, pl_module, stage)


def make_tricks(tricks: Sequence[str], monitor: str) -> list[Callback]:
    """Return the callbacks that names stand for, each class once.

    Args:
        tricks: ``"recipe"`` for all of :func:`~lightning_tricks.recipe`, ``"diagnosis"`` for ``Preflight``,
            ``Diagnosis`` and ``ActivationMonitor``, or the name of a callback class of this package: as the recipe
            sets it if it is one of its parts, else with its defaults.
        monitor: the metric for those that watch one.

    Raises:
        UserInputError: for a name that this package does not have.

    Example:
        >>> [type(trick).__name__ for trick in make_tricks(["diagnosis", "EarlyStopping"], "val_loss")]
        ['Preflight', 'Diagnosis', 'ActivationMonitor', 'EarlyStopping']
    """
    found: dict[type, Callback] = {}
    for name in tricks:
        for trick in _named(name, monitor):
            found.setdefault(type(trick), trick)
    return list(found.values())


def check_tricks(tricks: Sequence[str]) -> None:
    """Say now that a name is unknown, not when the script begins to train.

    Raises:
        UserInputError: for a name that this package does not have.
    """
    make_tricks(tricks, "val_loss")


def _named(name: str, monitor: str) -> list[Callback]:
    recipe = callbacks.recipe(monitor)
    if name == "recipe":
        return recipe
    if name == "diagnosis":
        return [callbacks.Preflight(), callbacks.Diagnosis(monitor), callbacks.ActivationMonitor()]
    known = [key for key in dir(callbacks) if _is_callback(getattr(callbacks, key))]
    if name not in known:
        raise UserInputError(
            f"--tricks takes {', '.join(GROUPS)} or names of callbacks of this package ({', '.join(known)}), "
            f"but got {name!r}."
        )
    kind = getattr(callbacks, name)
    as_in_recipe = [trick for trick in recipe if type(trick) is kind]
    if as_in_recipe:
        return as_in_recipe
    return [kind(monitor)] if "monitor" in signature(kind).parameters else [kind()]


def _is_callback(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Callback) and thing is not callbacks.PruningCallback


def _stands_for(own: Callback, trick: Callback) -> bool:
    """Whether the script's own callback already does what a trick would."""
    both_stop = isinstance(own, EarlyStopping) and isinstance(trick, EarlyStopping)  # Lightning's own class, too
    return isinstance(own, type(trick)) or both_stop


def _is_tuning(there: Sequence[Callback]) -> bool:
    """Whether a ``Tuner`` uses the Trainer for a trial run: its finders then end the run themselves."""
    finders = [own for own in there if isinstance(own, BatchSizeFinder | LearningRateFinder)]
    return any(own._early_exit for own in finders)


def _monitor_of(there: Sequence[Callback]) -> str:
    for own in there:
        monitor = getattr(own, "monitor", None)
        if isinstance(monitor, str) and isinstance(own, EarlyStopping | Checkpoint):
            return monitor
    return "val_loss"
