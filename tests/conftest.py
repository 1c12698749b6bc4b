"""Every test is deterministic, offline and single-threaded. The package must not be imported at the top of this file:
the jaxtyping hook has to see its modules first."""

import functools
import gc
import importlib.metadata
import os

import pytest
from hypothesis import settings

# The same examples in every run, as in CI.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["TORCH_HOME"] = "/nonexistent"  # a test that downloads weights fails


@pytest.fixture(autouse=True, scope="session")
def _autograd_began():
    """Let autograd begin before torch.compile or torch.export has made up a device, for which it would start a thread:
    then no process that is forked from here could train."""
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True, scope="session")
def _installed_once():
    """Read once what is installed: each of some thousand Trainers looks through all packages for callbacks."""
    from lightning.fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(importlib.metadata.entry_points))
        yield


def pytest_collection_finish(session):
    """Spare the garbage collector the million objects of the imports, here and in every process that is forked.

    And let the process for the ranks get ready beside the first tests; who runs one test may not need it.
    """
    gc.freeze()
    if "PYTEST_XDIST_WORKER" in os.environ:
        from helpers import start_rank_server

        start_rank_server()


def pytest_sessionfinish(session):
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """Run in an empty folder, with seeded streams and no warning already said."""
    import torch
    from lightning.pytorch import seed_everything

    from lightning_tricks._base import _messages

    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    _messages.forget_warnings()
    monkeypatch.chdir(tmp_path)
