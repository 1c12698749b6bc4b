"""The search's study: where it is kept, whether it fits, and what dead searches left in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune._alive import is_dead_here
from lightning_tricks.tune._methods import Chosen
from lightning_tricks.tune._slots import SlotSampler

_NOTE = "lightning_tricks:search"
WORKER = "lightning_tricks:worker"
RUN = "lightning_tricks:run"


def open_study(
    folder: Path,
    storage: "str | BaseStorage | None",
    chosen: Chosen,
    *,
    mode: Literal["min", "max"],
    pruner: "optuna.pruners.BasePruner",
    note: Mapping[str, Any],
) -> optuna.Study:
    """Open or begin the study of a folder.

    Raises:
        UserInputError: if the storage cannot be reached or holds another search under this name.
    """
    direction: Literal["minimize", "maximize"] = "minimize" if mode == "min" else "maximize"
    try:
        study = optuna.create_study(
            storage=journal(folder / "journal.log") if storage is None else storage,
            study_name=folder.resolve().name,
            direction=direction,
            sampler=chosen.sampler,
            pruner=pruner,
            load_if_exists=True,
        )
    except Exception as error:
        raise UserInputError(f"the storage {storage or folder / 'journal.log'} cannot be used: {error}") from error
    if study.direction.name.lower() != direction:
        raise UserInputError(
            f"the study {study.study_name!r} is to {study.direction.name.lower()}, but this search is to {direction}. "
            "Choose another folder."
        )
    _check_note(study, json.loads(json.dumps(note)))
    return study


def _check_note(study: optuna.Study, mine: dict[str, Any]) -> None:
    noted = study.user_attrs.get(_NOTE)
    if noted is None:
        study.set_user_attr(_NOTE, mine)
        return
    differ = [f"{name}={noted.get(name)!r} (now {mine[name]!r})" for name in mine if noted.get(name) != mine[name]]
    if differ:
        raise UserInputError(
            f"the study {study.study_name!r} was begun with {', '.join(differ)}. Go on with the same, or choose "
            "another folder."
        )


def journal(path: Path) -> JournalStorage:
    """Open a journal file; a last line that a crash or a full disk cut off is moved aside first.

    Optuna would append to such a line, which spoils both, and refuse the file from then on.
    """
    lock = JournalFileOpenLock(str(path))  # works on NFS 3 too
    lock.acquire()
    try:
        content = path.read_bytes() if path.exists() else b""
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            path.with_suffix(".cut-off").write_bytes(rest)
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def repair(study: optuna.Study, sampler: "optuna.samplers.BaseSampler") -> None:
    """Fail the trials that dead searches of this machine left running, and queue their points again."""
    if isinstance(sampler, SlotSampler):
        sampler.repair(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is not None and is_dead_here(worker):
            _queue_again(study, trial)


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    try:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:  # somebody else was faster
        return
    kept = {RUN: trial.user_attrs[RUN]} if RUN in trial.user_attrs else {}
    study.enqueue_trial(trial.params, user_attrs=kept)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that used up budget: all but those that died with their search or are yet to run."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs)
    ]
