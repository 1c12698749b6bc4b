"""Training processes: started, watched, and started again when something killed them."""

import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.tune.execution._claim import Claim
from lightning_tricks.tune.execution._heartbeat import Pulse, Watch, beat
from lightning_tricks.tune.execution._trial import Job, Work, result_file

StartMethod = Literal["auto", "fork", "forkserver", "spawn"]
# A run whose process was killed this often is given up: it may be what fills the memory.
MOST_STARTS = 3


def context_for(start_method: StartMethod, job: Job) -> BaseContext:
    """Return how to start processes: from a clean server if the job can be sent there, else by a fork.

    Raises:
        UserInputError: if the job can neither be sent nor inherited.
    """
    check_choice("start_method", start_method, ("auto", "fork", "forkserver", "spawn"))
    methods = multiprocessing.get_all_start_methods()
    if start_method != "auto":
        return multiprocessing.get_context(check_choice("start_method", start_method, methods))
    try:
        pickle.dumps(job)
    except Exception as error:
        if "fork" in methods and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return multiprocessing.get_context("fork")
        raise UserInputError(
            f"the training processes cannot be sent what they need ({error}). Define make_model, the data and the "
            "callbacks at the top of a module, not inside of a function and not as a lambda."
        ) from error
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["lightning_tricks.tune.execution._trial"])
    return context


class Run:
    """A job's process.

    Args:
        job: what to run; its folder may hold what an earlier process left, which is gone on from.
        context: how to start processes.
    """

    def __init__(self, job: Work, context: BaseContext) -> None:
        self.job = job
        self._context = context
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        process: BaseProcess = self._context.Process(target=run_in_process, args=(self.job,))  # type: ignore[attr-defined]
        self.process = process
        process.start()

    def poll(self) -> dict[str, Any] | None:
        """Return the result, or None while the process runs; start it again if it was killed."""
        if self.process.is_alive():
            return None
        self.process.join()
        result = read_result(self.job)
        if result is not None:
            return result
        if self.starts < MOST_STARTS:
            self._start()
            return None
        code = self.process.exitcode
        return {"status": "failed", "reason": f"its process died {self.starts} times, last with exit code {code}"}

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def pause(runs: Sequence[Run]) -> None:
    """Wait until one of the trainings ends, but not for long; with none, for what others do."""
    if runs:
        connection.wait([run.process.sentinel for run in runs], timeout=0.02)
    else:
        time.sleep(0.2)


def run_in_process(job: Work) -> None:
    """Run a job in a process of its own."""
    torch.set_num_threads(job.threads)
    if job.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpus
    job.run()


def read_result(job: Work) -> dict[str, Any] | None:
    """Return what a training process has left, if it ended."""
    path = result_file(job)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def finished_before(job: Work) -> dict[str, Any] | None:
    """Return the result that an earlier search left, if it is no failure."""
    result = read_result(job)
    return result if result is not None and result["status"] != "failed" else None


def with_share(job: Work, place: int, workers: int) -> Work:
    """Give a job its share of the machine: threads divided evenly, GPUs dealt out."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return job.sharing(threads, share_of_gpus(torch.cuda.device_count(), place, workers))


def share_of_gpus(gpus: int, place: int, workers: int) -> str | None:
    """Return the numbers of a worker's GPUs; None to leave all as they are.

    Example:
        >>> [share_of_gpus(4, place, 2) for place in (0, 1)], [share_of_gpus(2, place, 3) for place in (0, 1, 2)]
        (['0,2', '1,3'], ['0', '1', '0'])
    """
    if gpus == 0 or workers == 1:
        return None
    return ",".join(map(str, range(place, gpus, workers))) if workers <= gpus else str(place % gpus)


@dataclass(frozen=True)
class Pool:
    """How trainings are started.

    Args:
        job: what all of them share.
        workers: how many run at a time.
        context: how their processes start.
        grace: seconds without a heartbeat after which another search's training counts as dead.
    """

    job: Job
    workers: int
    context: BaseContext
    grace: float = 120.0

    def run(self, job: Work, place: int) -> Run:
        """Start a training at one of the places."""
        return Run(with_share(job, place, self.workers), self.context)

    def results(self, jobs: Sequence[Work]) -> list[dict[str, Any]]:
        """Run jobs, some at a time, and return their results in order.

        What is done already is not done again, and searches that share the folder share the jobs.
        """
        return SharedJobs(self, jobs).results()


class SharedJobs:
    """Jobs that all searches of a folder want done.

    Args:
        pool: how trainings are started.
        jobs: what is to be run.
    """

    def __init__(self, pool: Pool, jobs: Sequence[Work]) -> None:
        self.pool = pool
        self.jobs = jobs
        self.done = {i: result for i, job in enumerate(jobs) if (result := finished_before(job)) is not None}
        self.running: dict[int, tuple[int, Run]] = {}  # place -> job's number, run
        self.watch, self.pulse = Watch(pool.grace), Pulse(pool.grace / 4)
        self.elsewhere: set[int] = set()

    def results(self) -> list[dict[str, Any]]:
        """Run until all are done, here or elsewhere."""
        try:
            while len(self.done) < len(self.jobs):
                self._start()
                pause([run for _, run in self.running.values()])
                for place in list(self.running):
                    self._look_at(place)
        finally:
            for i, run in self.running.values():
                run.kill()
                self._end(i)
        return [self.done[i] for i in range(len(self.jobs))]

    def _start(self) -> None:
        for place in set(range(self.pool.workers)) - set(self.running):
            i = self._next()
            if i is None:
                return
            self.pulse.start(i, partial(beat, self.jobs[i].folder))
            self.running[place] = i, self.pool.run(self.jobs[i], place)

    def _next(self) -> int | None:
        """Claim a job; what another search has done in the meantime counts."""
        mine = {i for i, _ in self.running.values()}
        for i, job in enumerate(self.jobs):
            if i in self.done or i in mine:
                continue
            claim = self._claim(i)
            if not claim.take():
                self.elsewhere.add(i)
                continue
            result = read_result(job)
            if result is None or not (i in self.elsewhere or result["status"] != "failed"):
                result_file(job).unlink(missing_ok=True)  # an earlier search's failure
                return i
            self.done[i] = result
            claim.release()
        return None

    def _look_at(self, place: int) -> None:
        i, run = self.running[place]
        result = run.poll()
        if result is not None:
            self.done[i] = result
            del self.running[place]
            self._end(i)

    def _end(self, i: int) -> None:
        self.pulse.stop(i)
        self._claim(i).release()

    def _claim(self, i: int) -> Claim:
        return Claim(self.jobs[i].folder, self.watch)
