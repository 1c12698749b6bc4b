"""Claim: 200 fits in one process with all callbacks leak neither memory, hooks, file handles, threads nor trainers.

Run: python -m benchmarks.soak [--fits 200]

Each fit trains a new net with every callback of the package and a CSV logger, then tests it and predicts with
Monte-Carlo dropout. After each, the hooks on the module, open files, threads and living trainers are counted; memory
is compared between the end of the first quarter, when caches are warm, and the end. Exits with 1 if anything grew.
"""

import argparse
import gc
import json
import logging
import os
import tempfile
import threading
import warnings
import weakref
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import lightning_tricks as lt

MEBIBYTE = 2**20
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def callbacks():
    return [
        *lt.recipe("val_loss"),
        lt.ActivationMonitor(every_n_steps=2),
        lt.LRFinder(steps=10, update=False),
        lt.Preflight(on_finding="warn"),
        lt.WeightPenalty(l2=1e-4),
    ]


def one_fit(folder, data):
    module = lt.Classifier(lt.MLP(8, 3, hidden_features=(16, 16), dropout=0.2), 3, lr=1e-2)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=callbacks(),
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, data)
    trainer.test(module, data, verbose=False)
    trainer.predict(lt.MCDropoutPredictor(module, samples=8), data)
    left = sum(len(getattr(part, name)) for part in module.modules() for name in HOOKS)
    left += sum(len(optimizer._optimizer_step_pre_hooks) for optimizer in trainer.optimizers)
    return weakref.ref(trainer), weakref.ref(module), left


def count_of_now(trainers, modules):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory (MiB)": pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE,
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "threads of the system": len(list(Path("/proc/self/task").iterdir())),
        "living trainers": sum(reference() is not None for reference in trainers),
        "living modules": sum(reference() is not None for reference in modules),
        "living parameters": sum(isinstance(thing, nn.Parameter) for thing in gc.get_objects()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=200)
    fits = parser.parse_args().fits
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(96, 8)
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 32)
    trainers, modules, hooks, counts = [], [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(fits), desc="fits"):
            trainer, module, left = one_fit(folder, data)
            trainers.append(trainer)
            modules.append(module)
            hooks += left
            gc.collect()
            counts.append(count_of_now(trainers, modules))
    early, late = counts[fits // 4], counts[-1]
    print(f"{'':24s} {'fit ' + str(fits // 4 + 1):>10s} {'fit ' + str(fits):>10s}")
    for name in early:
        print(f"{name:24s} {early[name]:10.1f} {late[name]:10.1f}")
    print(f"{'hooks left on modules':24s} {'':10s} {hooks:10d}")
    allowed = {"memory (MiB)": 0.02 * early["memory (MiB)"]}  # what the allocator's arenas scatter by
    grown = [name for name in early if late[name] - early[name] > allowed.get(name, 0)]
    print(json.dumps({"benchmark": "soak", "fits": fits, "early": early, "late": late, "hooks": hooks, "grown": grown}))
    return 1 if grown or hooks else 0


if __name__ == "__main__":
    raise SystemExit(main())
