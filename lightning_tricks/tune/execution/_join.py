"""Take part in a search that another process or machine began."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

from lightning_tricks._base import UserInputError, accepts_old_names, require_extra
from lightning_tricks.tune._result import SearchResult
from lightning_tricks.tune._search import search
from lightning_tricks.tune.execution._processes import StartMethod
from lightning_tricks.tune.execution._search_record import RECORDED, imported, space_from_json

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage


@accepts_old_names("join")
def join(
    where: "str | Path | BaseStorage",
    make_model: Callable[..., LightningModule] | None = None,
    data: LightningDataModule | Callable[..., LightningDataModule] | None = None,
    *,
    study: str | None = None,
    folder: str | Path | None = None,
    workers: int = 1,
    trainer_kwargs: Mapping[str, Any] | None = None,
    callbacks: Callable[..., Sequence[Callback]] | None = None,
    logger: Callable[[Path, dict[str, Any]], Logger] | Mapping[str, Any] | None = None,
    start_method: StartMethod = "auto",
    progress: bool = True,
) -> SearchResult:
    """Take part in a search that was begun by :func:`~lightning_tricks.search`, until its budget is spent.

    Space, method, budget, metric, seed, pruning and the trainer's options are read from the study. ``make_model``,
    ``data``, ``callbacks`` and ``logger`` are imported by the names that the study has noted, if they stand at the top
    of modules that can be imported here; what cannot must be given. Training the best again, testing the winner and the
    report are left to whoever called ``search``. Join only studies whose writers you trust: what they name is imported.

    Args:
        where: the search's folder, if this machine sees it, or the address of its storage (an Optuna URL such as
            ``postgresql://...``), or an Optuna storage.
        make_model: as in ``search``; by its noted name if None.
        data: as in ``search``; by its noted name if None.
        study: name of the study, if the storage holds more than one.
        folder: where this machine writes its runs. By default the search's folder, or one named like the study in the
            working directory. A run that was broken off on one machine goes on from its checkpoint on another only if
            both see one folder.
        workers: trainings at a time on this machine.
        trainer_kwargs: options of ``Trainer``; those of the search if None.
        callbacks: as in ``search``; by its noted name if None.
        logger: as in ``search``; by its noted name if None.
        start_method: how training processes start.
        progress: whether to show a bar with the best value so far.

    Returns:
        The best trial of all machines.

    Raises:
        UserInputError: if there is no such search, its storage cannot be reached, or something must be given.

    Example:
        >>> join("no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: 'no/such/folder' holds no journal.log, so there is no search...
    """
    require_extra("optuna", "tune", "join()")
    found, storage, own = _find(where, study)
    noted = found.user_attrs[RECORDED]
    given: dict[str, Any] = {"make_model": make_model, "data": data, "callbacks": callbacks, "logger": logger}
    functions: dict[str, Any] = {
        name: value if value is not None else _by_name(noted, name) for name, value in given.items()
    }
    options = trainer_kwargs
    if options is None:
        options = _needed(noted, "trainer", "must be given: it was not plain text")
    return search(
        functions.pop("make_model"),
        functions.pop("data"),
        space_from_json(_needed(noted, "space", "is a function that cannot be imported; start the same script here")),
        trials=noted["trials"],
        method=_needed(noted, "method", "is a sampler of your own; start the same script here"),
        monitor=noted["monitor"],
        mode=noted["mode"],
        trainer_kwargs=options,
        folder=own if folder is None else folder,
        storage=storage,
        workers=workers,
        seed=noted["seed"],
        prune=_needed(noted, "prune", "is a pruner of your own; start the same script here", optional=True),
        folds=noted["folds"],
        vectorize=noted["vectorize"],
        retrain=0,
        start_method=start_method,
        grace=noted["grace"],
        report=False,
        progress=progress,
        study=found.study_name,
        **functions,
    )


def _find(where: "str | Path | BaseStorage", name: str | None) -> "tuple[optuna.Study, BaseStorage, Path]":
    """Return the study, its storage and the folder to work in."""
    import optuna

    from lightning_tricks.tune.execution._study import journal

    is_folder = isinstance(where, Path) or (isinstance(where, str) and "://" not in where)
    if is_folder:
        path = Path(where) / "journal.log"  # type: ignore[arg-type]
        if not path.exists():
            raise UserInputError(
                f"{str(where)!r} holds no journal.log, so there is no search to join. Give the folder of a search, or "
                "the address of its storage."
            )
        storage: BaseStorage = journal(path)
    else:
        try:
            storage = optuna.storages.get_storage(where)  # type: ignore[arg-type]
        except Exception as error:
            raise UserInputError(f"the storage {where} cannot be used: {error}") from error
    found = optuna.get_all_study_summaries(storage, include_best_trial=False)
    searches = sorted(s.study_name for s in found if RECORDED in s.user_attrs)
    if name is None and len(searches) == 1:
        name = searches[0]
    if name not in searches:
        raise UserInputError(
            f"study must be the name of a search in {where}, but got {name!r}. It holds: "
            f"{', '.join(map(repr, searches)) or 'none'}."
        )
    return optuna.load_study(study_name=name, storage=storage), storage, Path(where) if is_folder else Path(name)  # type: ignore[arg-type]


def _by_name(noted: Mapping[str, Any], name: str) -> Any:
    """Return a function of the search, imported; None if the search had none."""
    if not noted["given"][name]:
        return None
    if noted["functions"][name] is None:
        raise UserInputError(
            f"{name} must be given: the search's own cannot be imported by its name. Pass {name}=..., or define it at "
            "the top of a module that this machine can import."
        )
    found = noted["functions"][name]
    return imported(found) if isinstance(found, str) else found  # options of a logger


def _needed(noted: Mapping[str, Any], name: str, otherwise: str, *, optional: bool = False) -> Any:
    if noted[name] is None and (not optional or noted["given"][name]):
        raise UserInputError(f"the search's {name} {otherwise}.")
    return noted[name]
