"""The search's study: where it is kept, whether it fits, and what dead searches left in it."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune._space import Space
from lightning_tricks.tune.execution._heartbeat import Watch, read_beat
from lightning_tricks.tune.execution._search_record import RECORDED, name_of, plain, space_to_json
from lightning_tricks.tune.execution._trial import Job
from lightning_tricks.tune.samplers._methods import Chosen
from lightning_tricks.tune.samplers._slot_table import MOST_DEATHS
from lightning_tricks.tune.samplers._slots import SlotSampler

_NOTE = "lightning_tricks:search"
WORKER = "lightning_tricks:worker"
RUN = "lightning_tricks:run"
PULSE = "lightning_tricks:pulse"
_DEATHS = "lightning_tricks:deaths"


def open_study(
    folder: Path,
    storage: "str | BaseStorage | None",
    chosen: Chosen,
    *,
    name: str | None = None,
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
            study_name=folder.resolve().name if name is None else name,
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
    _check_folder(folder, study.study_name)
    return study


def _check_folder(folder: Path, name: str) -> None:
    """Refuse a folder with the runs of another study, whose checkpoints would be gone on from."""
    path = folder / "study.txt"
    if not path.exists():
        path.write_text(name, encoding="utf-8")
    elif (held := path.read_text(encoding="utf-8")) not in ("", name):
        raise UserInputError(f"{folder} holds the runs of the study {held!r}, not of {name!r}. Choose another folder.")


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


def record_search(study: optuna.Study, job: Job, space: Space, settings: Mapping[str, Any]) -> None:
    """Write down what another machine needs to take part: settings that are plain, functions by their names.

    Once, and again for a larger budget.
    """
    if study.user_attrs.get(RECORDED, {}).get("trials", 0) >= settings["trials"]:
        return
    functions = {name: name_of(getattr(job, name)) for name in ("make_model", "data", "callbacks", "logger")}
    if isinstance(job.logger, Mapping):
        functions["logger"] = plain(dict(job.logger))
    given = {name: getattr(job, name) is not None for name in functions} | {
        name: settings[name] is not None for name in ("prune",)
    }
    plainly = {name: plain(value) for name, value in settings.items()}
    content = {**plainly, "space": space_to_json(space), "functions": functions, "given": given}
    study.set_user_attr(RECORDED, content)


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


def repair(study: optuna.Study, sampler: "optuna.samplers.BaseSampler", folder: Path, watch: Watch) -> None:
    """Fail the trials that dead workers left running, and queue their points again.

    Args:
        study: shared by all.
        sampler: the search's own.
        folder: holds each run's heartbeat.
        watch: has seen the heartbeats before.
    """
    if isinstance(sampler, SlotSampler):
        sampler.repair(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_dead(trial, folder, watch):
            continue
        if not (isinstance(sampler, SlotSampler) and sampler.take_for_dead(study, trial)):
            _take_over(study, trial)


def _is_dead(trial: FrozenTrial, folder: Path, watch: Watch) -> bool:
    worker = trial.user_attrs.get(WORKER)
    seen = read_beat(folder / trial.user_attrs[RUN]) if RUN in trial.user_attrs else None
    return watch.is_dead(trial.number, worker, (seen, trial.user_attrs.get(PULSE)))


def running_elsewhere(study: optuna.Study, mine: Collection[int]) -> bool:
    """Whether other workers still train."""
    return any(t.number not in mine for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _take_over(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail a dead worker's trial and queue its point again, unless it may be what kills the workers."""
    deaths = trial.user_attrs.get(_DEATHS, 0) + 1
    try:
        if deaths >= MOST_DEATHS:
            reason = f"{deaths} workers died with it"
            study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:  # somebody else was faster
        return
    if deaths < MOST_DEATHS:
        queue_again(study, trial, **{_DEATHS: deaths})


def queue_again(study: optuna.Study, trial: FrozenTrial, **attrs: Any) -> None:
    """Put a trial's point into the queue: what was suggested, and what an enqueued trial was given beforehand.

    Args:
        study: shared by all.
        trial: what was not finished.
        **attrs: attributes of the new trial; it goes on in the old one's folder.
    """
    kept = {RUN: trial.user_attrs[RUN]} if RUN in trial.user_attrs else {}
    given = trial.system_attrs.get("fixed_params", {})
    study.enqueue_trial({**given, **trial.params}, user_attrs={**kept, **attrs})


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that used up budget: all but those that died with their search or are yet to run."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs)
    ]
