"""What several tests share: a quiet trainer, and real processes for anything distributed."""

import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only


def quiet_trainer(**options: Any) -> Trainer:
    """Return a CPU trainer without bar, summary, logger or checkpoints unless asked for."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


# Ranks are forked from a process that has imported everything and trained nothing: forking the test process itself
# fails once autograd or the compiler has started threads in it.
_FORKS = mp.get_context("forkserver")


def start_rank_server() -> None:
    """Begin to start the process of which ranks are forks, unless it runs."""
    _FORKS.set_forkserver_preload(["rank_server"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks for what it loads in its own path only
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2, timeout: float = 120) -> list[Any]:
    """Run ``function(rank, *args)`` in gloo ranks and return their results in order of rank.

    ``function`` must stand at the top level of a module, for it travels by name. The environment of each rank is that
    of a launched process, so a ``Trainer(strategy="ddp", devices=world_size)`` made inside joins it. After the first
    use in a test session a run costs a fraction of a second. Results must pickle (tensors travel as lists or NumPy
    arrays). A rank's exception fails the test with its traceback.
    """
    start_rank_server()
    # The ranks meet at a store that is there before them, as under torchrun: for one of rank 0 they would have to wait.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = _FORKS.Queue()
    ranks = [
        _FORKS.Process(target=_rank, args=(function, r, world_size, store.port, results, args))
        for r in range(world_size)
    ]
    for process in ranks:
        process.start()
    answers: dict[int, Any] = {}
    end = time.monotonic() + timeout
    try:
        while len(answers) < world_size:
            try:
                rank, ok, value = results.get(timeout=1)
            except Empty:
                waiting = [r for r in range(world_size) if r not in answers]
                if all(ranks[r].exitcode is not None for r in waiting):
                    raise AssertionError(f"ranks {waiting} died: {[p.exitcode for p in ranks]}") from None
                if time.monotonic() > end:
                    raise AssertionError(f"ranks {waiting} did not answer in {timeout} s") from None
                continue
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            answers[rank] = value
        return [answers[rank] for rank in range(world_size)]
    finally:
        for process in ranks:
            process.join(timeout=5 if len(answers) == world_size else 0.1)
            if process.is_alive():
                process.kill()


def _rank(function, rank, world_size, port, results, args) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        GROUP_RANK="0",
        ROLE_RANK=str(rank),
        TORCHELASTIC_RUN_ID="test",
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    mp.set_start_method("fork", force=True)  # for the workers of its loaders, as in a launched process
    torch.set_num_threads(1)
    rank_zero_only.rank = rank
    try:
        answer = (rank, True, function(rank, *args))
    except BaseException:  # reported to the parent, whatever it is
        answer = (rank, False, traceback.format_exc())
    results.put(answer)
    if torch.distributed.is_initialized() and answer[1]:
        torch.distributed.destroy_process_group()
