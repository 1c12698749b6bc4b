"""Hyperparameter search: one process per training, everything written down, a killed search goes on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

from lightning_tricks._base import (
    UserInputError,
    accepts_old_names,
    check_range,
    derive_seed,
    infer_mode,
    require_extra,
    warn_once,
)
from lightning_tricks.tune._result import Retrained, SearchResult
from lightning_tricks.tune._space import Space, check_space
from lightning_tricks.tune.execution._processes import Pool, StartMethod, context_for
from lightning_tricks.tune.execution._trial import Job
from lightning_tricks.tune.reporting._run_table import mean_and_sd, ordered
from lightning_tricks.tune.samplers._methods import Method, choose

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from lightning_tricks.tune.execution._trials import SharedTrials

PrunerName = Literal["asha", "median", "wilcoxon"]


@accepts_old_names("search")
def search(
    make_model: Callable[..., LightningModule],
    data: LightningDataModule | Callable[..., LightningDataModule],
    space: Space | str | Path,
    *,
    trials: int,
    method: "Method | BaseSampler" = "auto",
    monitor: str = "val_loss",
    mode: Literal["auto", "min", "max"] = "auto",
    trainer_kwargs: Mapping[str, Any] | None = None,
    callbacks: Callable[..., Sequence[Callback]] | None = None,
    logger: Callable[[Path, dict[str, Any]], Logger] | Mapping[str, Any] | None = None,
    folder: str | Path = "search",
    storage: "str | BaseStorage | None" = None,
    study: str | None = None,
    workers: int = 1,
    seed: int = 0,
    prune: "PrunerName | BasePruner | None" = None,
    folds: int | None = None,
    vectorize: bool | int = False,
    retrain: int = 3,
    retrain_seeds: int = 3,
    test: bool = True,
    start_method: StartMethod = "auto",
    grace: float = 120.0,
    report: bool = True,
    progress: bool = True,
) -> SearchResult:
    """Search hyperparameters, train the best again with other seeds, and test the winner.

    Each trial trains in a process of its own, with the same split and the same training seed; its value is the best one
    of the run, not the last. A trial that raises (out of memory, a loss that was never finite) is recorded with its
    reason and the search goes on; three such in a row end it, and so does a mistake that every trial would make. A
    killed training goes on from its last checkpoint, a killed search where it was: call it again with the same
    arguments. Called at the same time on another machine that sees the folder (or the storage), it joins in; so does
    :func:`~lightning_tricks.join`, which reads the arguments from the study.

    What the best of many trials promises is too good. So the best three are trained again with three other seeds each,
    the best mean wins, and only the winner's trainings see the test set.

    Args:
        make_model: returns a new model; called with those hyperparameters that it has arguments for (all, if it takes
            ``**others``).
        data: the data, or a function that returns it, called in the same way (for the batch size, say).
        space: hyperparameters by name, each a :class:`~lightning_tricks.Float`, :class:`~lightning_tricks.Int` or
            :class:`~lightning_tricks.Choice`; a function of an Optuna trial that returns a dict; or the path of a YAML
            file (a list is a choice, ``{low: 1.0e-5, high: 0.1, log: true}`` a number).
        trials: budget, at least 1.
        method: ``"auto"`` (says what it took and why), ``"grid"``, ``"random"``, ``"coarse_to_fine"``, ``"gp"``,
            ``"tpe"``, ``"coarse+gp"`` (the coarse round, then Gaussian processes), or an Optuna sampler.
        monitor: name of the metric, logged in validation.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to tell by the metric's name.
        trainer_kwargs: options of ``Trainer``, such as ``{"max_epochs": 20}``.
        callbacks: returns new callbacks for each training, such as ``lambda: lt.recipe("val_loss")``; called like
            ``make_model``.
        logger: returns a training's logger, called with its folder and its hyperparameters; or options of
            ``WandbLogger``, such as ``{"project": "digits"}``: then each training is a run of its own, in a group
            that is named like the study; a CSV file if None.
        folder: where everything is written.
        storage: an Optuna storage or its URL; by default a journal file in the folder.
        study: name of the study in the storage; the folder's name if None.
        workers: trainings at a time; they share out the threads and the GPUs.
        seed: of the points, and of every training.
        prune: give up runs that look bad: ``"asha"``, ``"median"``, an Optuna pruner, or None; with ``folds`` between
            two folds, also by ``"wilcoxon"`` (a signed-rank test against the best trial's folds). Never in the coarse
            round of a coarse-to-fine search, and pruned runs do not move its windows.
        folds: divide training and validation rows into this many folds, train once per fold, and take the mean of the
            folds' last values, by :func:`~lightning_tricks.cross_validate`; ``data`` must be a DataModule of this
            package.
        vectorize: train trials that share their architecture together, as stacked parameters in one process
            (:func:`~lightning_tricks.fit_stacked`): many times the throughput for small nets. A number is how many at
            most; True decides by the method. Not together with ``prune``, nor with hyperparameters of the data.
        retrain: how many of the best settings are trained again; 0 for none.
        retrain_seeds: how many seeds each of them is trained with.
        test: whether the winner is tested, if any were trained again.
        start_method: how training processes start; ``"auto"`` takes a clean server process if ``make_model`` and the
            rest can be sent there (defined at the top of a module), else a fork.
        grace: seconds without a heartbeat after which a training on another machine counts as dead and is run again
            from its last checkpoint; on this machine its process is looked up.
        report: whether to write ``report.html`` with tables and pictures at the end.
        progress: whether to show a bar with the best value so far.

    Returns:
        The winner, the study and where the records are: ``report.html``, ``runs.csv``, and per run ``hparams.yaml`` and
        ``log.txt``.

    Raises:
        UserInputError: for a space that contradicts itself, an unknown method, a storage that cannot be reached or
            holds another search, a metric that is never logged, trials that all fail.

    Example:
        >>> import tempfile
        >>> import lightning_tricks as lt
        >>> def make_model(lr):
        ...     return lt.Classifier(lt.MLP(64, 10), num_classes=10, lr=lr)
        >>> result = lt.search(
        ...     make_model,
        ...     lt.DigitsDataModule(batch_size=256),
        ...     {"lr": lt.Choice([1e-4, 1e-2])},
        ...     trials=2,
        ...     trainer_kwargs={"max_epochs": 1, "accelerator": "cpu"},
        ...     folder=tempfile.mkdtemp(),
        ...     retrain=0,
        ...     report=False,
        ...     progress=False,
        ... )
        >>> result.method, result.best_params
        ('grid', {'lr': 0.01})
    """
    require_extra("optuna", "tune", "search()")
    from lightning_tricks.tune.execution._study import open_study, record_search
    from lightning_tricks.tune.execution._trials import SharedTrials

    for what, number, least in (("trials", trials, 1), ("workers", workers, 1), ("retrain", retrain, 0)):
        check_range(what, number, low=least)
    check_range("retrain_seeds", retrain_seeds, low=1)
    check_range("grace", grace, low=0, open_low=True)
    if folds is not None:
        check_range("folds", folds, low=2)
    elif prune == "wilcoxon":
        raise UserInputError("prune='wilcoxon' compares folds with folds. Give folds=5, say, or prune='asha'.")
    _check_trainer(trainer_kwargs or {})
    space = check_space(space)
    mode = infer_mode(monitor, mode)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose(method, space, trials=trials, seed=seed, grace=grace)
    if isinstance(logger, Mapping):
        logger = {"group": study or folder.resolve().name, **logger}
    job = Job(
        folder, {}, make_model, data, monitor, mode, seed, dict(trainer_kwargs or {}), callbacks, logger, folds=folds
    )
    note = {"space": _as_text(space), "monitor": monitor, "method": chosen.name, "seed": seed, "folds": folds}
    check = _check_of_stacks(vectorize, prune, space, job) if vectorize else None
    record = {"trials": trials, "method": method, "prune": prune, "mode": mode, "trainer": job.trainer}
    record["vectorize"] = vectorize
    opened = open_study(folder, storage, chosen, name=study, mode=mode, pruner=_pruner(prune), note=note)
    record_search(opened, job, space, {**note, **record, "grace": grace})
    pool = Pool(job, workers, context_for(start_method, job), grace)
    shared = SharedTrials(opened, space, chosen, pool, prune=prune is not None, check=check)
    _run(shared, vectorize, progress=progress)
    if not ordered(opened):
        raise UserInputError(f"all trials failed; the reasons are in {folder / 'runs.csv'}.")
    best = ordered(opened)[:retrain]
    retrained, tested = _again(best, pool, retrain_seeds, test=test, stacked=bool(vectorize))
    result = _result(opened, folder, chosen.name, chosen.reason, retrained, tested)
    if report:
        _write_report(result)
    return result


def _check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse what every training gets from the search."""
    for name, instead in (("callbacks", "callbacks"), ("logger", "logger"), ("default_root_dir", "folder")):
        if name in options:
            raise UserInputError(
                f"each training has {name} of its own: pass {instead}=... to search, not "
                f"trainer_kwargs={{{name!r}: ...}}."
            )


def _write_report(result: SearchResult) -> None:
    try:
        result.to_html()
    except Exception as error:  # a picture that cannot be drawn must not take the search's result with it
        warn_once(f"report.html could not be written: {type(error).__name__}: {error}")


def _check_of_stacks(vectorize: bool | int, prune: Any, space: Space, job: Job) -> Callable[[Mapping[str, Any]], None]:
    """Refuse a search that cannot be run in stacks; return what checks the hyperparameters of each trial."""
    from lightning_tricks.tune.execution._stack_loop import check_shared

    check_range("vectorize", vectorize, low=1)
    if prune is not None:
        raise UserInputError("prune gives up single trainings and cannot be combined with vectorize. Give one of them.")
    if not callable(space):  # what a function suggests is known only when it is asked
        check_shared(job.data, space)
    return partial(check_shared, job.data)


def _run(trials: "SharedTrials", vectorize: bool | int, *, progress: bool) -> None:
    """Train the trials, each in a process of its own or in stacks."""
    if not vectorize:
        from lightning_tricks.tune.execution._loop import ProcessRunner

        ProcessRunner(trials, progress=progress).run()
        return
    from lightning_tricks.tune.execution._stack_loop import StackRunner

    StackRunner(trials, most=vectorize, progress=progress).run()


def _again(
    chosen: "Sequence[FrozenTrial]", pool: Pool, seeds: int, *, test: bool, stacked: bool
) -> tuple[tuple[Retrained, ...], dict[str, tuple[float, float]]]:
    """Train the best settings again with other seeds; test the one with the best mean."""
    from lightning_tricks.tune.execution._study import RUN

    jobs = {
        (t.number, i): replace(
            pool.job,
            folder=pool.job.folder / "again" / f"{t.user_attrs[RUN]}-seed-{i}",
            params=t.user_attrs.get("params", dict(t.params)),
            seed=derive_seed(pool.job.seed, "again", i) % 2**32,
            folds=None,
        )
        for t in chosen
        for i in range(seeds)
    }
    results = _in_stacks(jobs, pool) if stacked else dict(zip(jobs, pool.results(list(jobs.values())), strict=True))
    table = []
    for trial in chosen:
        values = tuple(r["value"] for (n, _), r in results.items() if n == trial.number and r["status"] != "failed")
        if values:
            params = jobs[trial.number, 0].params
            table.append((trial.number, Retrained(trial.user_attrs[RUN], params, values, *mean_and_sd(values))))
    sign = 1 if pool.job.mode == "min" else -1
    table.sort(key=lambda pair: sign * pair[1].mean)
    if not table or not test:
        return tuple(r for _, r in table), {}
    winners = [
        replace(job, test=True)
        for key, job in jobs.items()
        if key[0] == table[0][0] and results[key]["status"] != "failed"
    ]
    return tuple(r for _, r in table), _tested(pool.results(winners))


def _in_stacks(jobs: Mapping[tuple[int, int], Job], pool: Pool) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the results of trainings by trial and seed; those of one seed share their batches, and so a stack."""
    from lightning_tricks.tune.execution._stack_job import results_of, stack_of

    stacks: dict[int, list[tuple[int, int]]] = {}
    for key in jobs:
        stacks.setdefault(key[1], []).append(key)
    shared = [replace(pool.job, seed=jobs[keys[0]].seed, folds=None) for keys in stacks.values()]
    parts = [[jobs[key] for key in keys] for keys in stacks.values()]
    found = pool.results([stack_of(part, job) for part, job in zip(parts, shared, strict=True)])
    results: dict[tuple[int, int], dict[str, Any]] = {}
    for keys, result in zip(stacks.values(), found, strict=True):
        results |= zip(keys, results_of(result, len(keys)), strict=True)
    return results


def _tested(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    done = [r["metrics"] for r in results if r["status"] == "complete"]
    if not done:
        warn_once(f"the winner could not be tested: {results[0]['reason']}")
        return {}
    return {name: mean_and_sd([metrics[name] for metrics in done]) for name in done[0]}


def _result(
    study: Any,
    folder: Path,
    method: str,
    reason: str,
    retrained: tuple[Retrained, ...],
    tested: Mapping[str, tuple[float, float]],
) -> SearchResult:
    from lightning_tricks.tune.reporting._explain import edge_warnings

    best = ordered(study)[0]
    notes = tuple(edge_warnings(study)) if method != "grid" else ()
    for note in notes:
        warn_once(note.removeprefix("Warning: "))
    params, value = best.user_attrs.get("params", dict(best.params)), float(best.value or 0.0)
    if retrained:
        params, value = retrained[0].params, retrained[0].mean
    return SearchResult(folder, study, method, reason, params, value, retrained, tested, notes)


def _pruner(prune: "PrunerName | BasePruner | None") -> "BasePruner":
    import optuna

    if prune is None:
        return optuna.pruners.NopPruner()
    if isinstance(prune, optuna.pruners.BasePruner):
        return prune
    if prune == "asha":
        return optuna.pruners.SuccessiveHalvingPruner()
    if prune == "median":
        return optuna.pruners.MedianPruner()
    if prune == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.pruners.WilcoxonPruner()
    raise UserInputError(f"prune must be 'asha', 'median', 'wilcoxon', an Optuna pruner or None, but got {prune!r}.")


def _as_text(space: Space) -> Any:
    if callable(space):
        return f"function {getattr(space, '__qualname__', type(space).__name__)}"
    return {name: repr(entry) for name, entry in space.items()}
