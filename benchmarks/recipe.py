"""Claim: the whole ``recipe()`` adds at most 5 % of CPU time per training step on the digits.

Run: python -m benchmarks.recipe [--epochs 20] [--rounds 7]

Both runs train the same net for the same number of epochs, validation included; the recipe's patience is so long
that it never stops. It ends with other weights where it initialises, which does not change what a step costs.
"""

import argparse
import logging
import time
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything

import lightning_tricks as lt
from benchmarks.timing import report


def fit(callbacks, *, epochs, net):
    seed_everything(0, verbose=False)
    data = lt.DigitsDataModule(batch_size=64)
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
    trainer.fit(model, data)
    return (time.process_time() - start) / trainer.global_step


NETS = {
    "MLP 64-128-128-10": lambda: lt.MLP(64, 10, hidden_features=(128, 128), dropout=0.3),
    "ConvNet 32-64 (the demo's)": lambda: lt.ConvNet(1, 10, channels=(32, 64), dropout=0.4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, net in NETS.items():
        cases = {"no callbacks": list, "recipe()": lambda: lt.recipe("val_loss", patience=1000)}
        times = {case: [] for case in cases}
        for number in range(arguments.rounds + 1):  # the first round warms up
            order = list(cases) if number % 2 else list(reversed(cases))
            for case in order:
                seconds = fit(cases[case](), epochs=arguments.epochs, net=net)
                if number:
                    times[case].append(seconds)
        report(f"recipe, {name}", times, base="no callbacks", epochs=arguments.epochs, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
