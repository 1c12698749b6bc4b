"""What several tests share: a quiet trainer, and real processes for anything distributed."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from lightning.pytorch import Trainer


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


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2, timeout: float = 120) -> list[Any]:
    """Run ``function(rank, *args)`` in forked gloo ranks and return their results in order of rank.

    The environment of each rank is that of a launched process, so a ``Trainer(strategy="ddp", devices=world_size)``
    made inside joins it. Forking keeps the imports: a run costs a fraction of a second, not ten. Results must pickle
    (tensors travel as NumPy arrays or by value). Raises the first rank's exception as text.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    results = context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(function, rank, world_size, port, results, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        answers: dict[int, tuple[bool, Any]] = {}
        import time

        end = time.monotonic() + timeout
        while len(answers) < world_size:
            if results.empty():
                if time.monotonic() > end:
                    raise TimeoutError(f"ranks {set(range(world_size)) - set(answers)} did not answer in {timeout} s")
                if all(not p.is_alive() for p in ranks) and results.empty():
                    raise RuntimeError(f"a rank died; exit codes {[p.exitcode for p in ranks]}")
                time.sleep(0.01)
                continue
            rank, ok, value = results.get()
            answers[rank] = (ok, value)
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
        return [answers[rank][1] for rank in range(world_size)]
    finally:
        for process in ranks:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


def _rank(function, rank, world_size, port, results, args) -> None:
    torch.set_num_threads(1)
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
    )
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank
    try:
        results.put((rank, True, function(rank, *args)))
    except BaseException:  # reported to the parent, whatever it is
        results.put((rank, False, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os._exit(0)  # no teardown of what the parent owns
