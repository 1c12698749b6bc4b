"""Claim: the whole ``recipe()`` adds at most 5 % of CPU time per training step on the digits with the demo's net.

Run: python -m benchmarks.recipe [--epochs 20] [--rounds 7] [--logger]

All runs train the same net for the same number of epochs, validation included, taking turns of a few steps; the
recipe's patience is so long that it never stops. It ends with other weights where it initialises, which does not
change what a step costs. "five empty callbacks" is what Lightning charges for calling as many callbacks at every hook.
With --logger all write metrics.csv.
"""

import argparse
import logging
import tempfile
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lightning_tricks as lt
from benchmarks.timing import fits_in_turns, report_turns

NETS = {
    "MLP 64-128-128-10": lambda: lt.MLP(64, 10, hidden_features=(128, 128), dropout=0.3),
    "ConvNet 32-64 (the demo's)": lambda: lt.ConvNet(1, 10, channels=(32, 64), dropout=0.4),
}
CASES = {
    "no callbacks": list,
    "five empty callbacks": lambda: [Callback() for _ in range(5)],
    "recipe()": lambda: lt.recipe("val_loss", patience=1000),
}


def fit(callbacks, *, epochs, net, logger=False):
    seed_everything(0, verbose=False)
    data = lt.DigitsDataModule(batch_size=64)
    model = lt.Classifier(net(), 10, lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            default_root_dir=folder,
            accelerator="cpu",
            callbacks=callbacks,
            logger=logger,
            log_every_n_steps=50 if logger else 10**9,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--logger", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    settings = {"epochs": arguments.epochs, "logger": arguments.logger}
    for name, net in NETS.items():
        rounds = []
        for number in range(arguments.rounds + 1):  # the first round warms up
            order = list(CASES) if number % 2 else list(reversed(CASES))
            fits = {
                case: lambda turn, make=CASES[case], net=net: fit([turn, *make()], net=net, **settings)
                for case in order
            }
            rounds.append(fits_in_turns(fits, every=17))  # an epoch, with its validation
        report_turns(f"recipe, {name}", rounds[1:], base="no callbacks", number=arguments.rounds, **settings)


if __name__ == "__main__":
    main()
