"""Claim: EarlyStopping and ReduceLROnPlateau together add at most 1 % of CPU time per training step on the digits.

Run: python -m benchmarks.stopping [--epochs 20] [--rounds 7]

All runs train the same net for the same number of epochs, validation included, taking turns of an epoch; patience is so
long that nothing stops and no rate falls. "two empty callbacks" is what Lightning charges for calling any two callbacks
at every hook. "inside our hooks" is CPU time measured within the methods themselves, as a share of the same run.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback

import lightning_tricks as lt
from benchmarks.recipe import NETS, fit
from benchmarks.timing import fits_in_turns, report_turns


def pair(**options: Any) -> list[Callback]:
    return [lt.EarlyStopping("val_loss", patience=1000, **options), lt.ReduceLROnPlateau("val_loss", patience=1000)]


CASES = {
    "no callbacks": list,
    "two empty callbacks": lambda: [Callback(), Callback()],
    "the pair, restore_best=False": lambda: pair(restore_best=False),
    "the pair, keep='cpu'": pair,
}


def metered(callback: Callback, spent: list[float]) -> Callback:
    """Count the CPU time within a callback's own hooks."""
    for name in [name for name in dir(type(callback)) if name.startswith("on_") or name == "setup"]:
        if getattr(type(callback), name) is not getattr(Callback, name, None):
            setattr(callback, name, _timed(getattr(callback, name), spent))
    return callback


def _timed(hook: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        start = time.thread_time()
        try:
            return hook(*args, **options)
        finally:
            spent.append(time.thread_time() - start)

    return timed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, net in NETS.items():
        rounds, inside = [], []
        for number in range(arguments.rounds + 1):  # the first round warms up
            order = list(CASES) if number % 2 else list(reversed(CASES))
            fits = {
                case: lambda turn, make=CASES[case], net=net: fit([turn, *make()], net=net, epochs=arguments.epochs)
                for case in order
            }
            rounds.append(fits_in_turns(fits, every=17))  # an epoch, with its validation
            spent: list[float] = []
            both = [metered(callback, spent) for callback in pair()]
            start = time.thread_time()
            fit(both, epochs=arguments.epochs, net=net)
            inside.append(sum(spent) / (time.thread_time() - start))
        facts = {"epochs": arguments.epochs, "number": arguments.rounds}
        report_turns(f"stopping pair, {name}", rounds[1:], base="no callbacks", **facts)
        share = statistics.median(inside[1:])
        print(
            f"{'inside our hooks, share of the run':40s} {share:8.4f}   {min(inside[1:]):.4f} .. {max(inside[1:]):.4f}"
        )
        print(json.dumps({"benchmark": f"inside the pair's hooks, {name}", "share": share, **facts}))


if __name__ == "__main__":
    main()
