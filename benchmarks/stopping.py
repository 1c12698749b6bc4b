"""Claim: EarlyStopping and ReduceLROnPlateau together add at most 1 % of CPU time per training step on the digits.

Run: python -m benchmarks.stopping [--epochs 12] [--rounds 15]

All runs train the same net for the same number of epochs, validation included; patience is so long that nothing stops
and no rate falls. "two empty callbacks" is what Lightning charges for calling any two callbacks at every hook. "inside
our hooks" is CPU time measured within the methods themselves, as a share of the run without callbacks.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lightning_tricks as lt
from benchmarks.timing import report

NETS = {
    "MLP 64-128-128-10": lambda: lt.MLP(64, 10, hidden_features=(128, 128), dropout=0.3),
    "ConvNet 32-64 (the demo's)": lambda: lt.ConvNet(1, 10, channels=(32, 64), dropout=0.4),
}


def pair(**options: Any) -> list[Callback]:
    return [lt.EarlyStopping("val_loss", patience=1000, **options), lt.ReduceLROnPlateau("val_loss", patience=1000)]


class CountSteps(Callback):
    """Note how long the run was."""

    number = 0

    def on_train_end(self, trainer, pl_module):
        """Read the counter."""
        self.number = trainer.global_step


def metered(callback: Callback, spent: list[float]) -> Callback:
    """Count the CPU time within a callback's own hooks."""
    for name in [name for name in dir(type(callback)) if name.startswith("on_") or name == "setup"]:
        if getattr(type(callback), name) is not getattr(Callback, name, None):
            setattr(callback, name, _timed(getattr(callback, name), spent))
    return callback


def _timed(hook: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return hook(*args, **options)
        finally:
            spent.append(time.process_time() - start)

    return timed


def fit(callbacks, *, epochs, net):
    seed_everything(0, verbose=False)
    model = lt.Classifier(net(), 10, lr=3e-3)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    trainer.fit(model, lt.DigitsDataModule(batch_size=64))
    return (time.process_time() - start) / trainer.global_step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, net in NETS.items():
        cases = {
            "no callbacks": list,
            "two empty callbacks": lambda: [Callback(), Callback()],
            "the pair, restore_best=False": lambda: pair(restore_best=False),
            "the pair, keep='cpu'": pair,
        }
        times = {case: [] for case in cases}
        inside = []
        for number in range(arguments.rounds + 1):  # the first round warms up
            for case in list(cases) if number % 2 else list(reversed(cases)):
                seconds = fit(cases[case](), epochs=arguments.epochs, net=net)
                if number:
                    times[case].append(seconds)
            spent: list[float] = []
            both = [metered(callback, spent) for callback in pair()]
            steps = CountSteps()
            fit([*both, steps], epochs=arguments.epochs, net=net)
            if number:
                inside.append(sum(spent) / (times["no callbacks"][-1] * steps.number))
        facts = {"epochs": arguments.epochs, "rounds": arguments.rounds}
        report(f"stopping pair, {name}", times, base="no callbacks", **facts)
        middle = sorted(inside)[len(inside) // 2]
        print(f"{'inside our hooks, share of the run':40s} {middle:8.4f}   {min(inside):.4f} .. {max(inside):.4f}")
        print(json.dumps({"benchmark": f"inside the pair's hooks, {name}", "share": middle, **facts}))


if __name__ == "__main__":
    main()
