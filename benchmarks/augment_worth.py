"""What is augmentation worth? A small ConvNet on a subset of CIFAR-10, with and without, over several seeds.

    python benchmarks/augment_worth.py DATA_FOLDER [--per-class 300] [--epochs 32] [--seeds 0 1 2] [--out PICTURE]

``DATA_FOLDER`` holds ``cifar10_subset.npz``: JPEG bytes ``train_jpeg`` with ``train_offsets`` and ``train_labels``, and
the same for ``test_``. The package does it all, as a user would: ``ImageDataModule``, ``Classifier``, a Trainer. Net,
first weights, order of the samples, optimizer (SGD, one cycle that ends near 0) and number of steps are the same in all
arms (``--arms none standard ...``); nothing is chosen by the test pictures, which the last epoch's net is judged by.

Every finished training is a line of ``--runs``, and is not done again: an interrupted benchmark goes on there. Prints
a table over the seeds and one JSON line; ``--out`` draws the curves.
"""

import argparse
import itertools
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torchvision.io import decode_jpeg

import lightning_tricks as lt
from lightning_tricks.data.augment import Brightness, Contrast, CutMix, Saturation, standard_ops

CHANNELS = (16, 32, 64, 128)
BATCH = 64
RATE = 0.05
EVERY = 8  # epochs between looks at the test pictures
STANDARD = standard_ops((3, 32, 32))  # a crop with 4 pixels of padding, a flip
COLOUR = [Brightness(0.2), Contrast(0.2), Saturation(0.2)]
ARMS = {
    "none": "none",
    "standard": "standard",
    "standard + colour": [*STANDARD, *COLOUR],
    "standard + CutMix": [*STANDARD, CutMix(1.0, p=0.5)],
}


class OneCycle(lt.Classifier):
    """A classifier whose rate rises to ``RATE`` and falls to nearly 0 over the whole training."""

    def configure_optimizers(self):
        """Return SGD and its schedule."""
        groups = lt.param_groups(self.net, 5e-4)
        optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(pl.Callback):
    """Keeps what is logged: the accuracy on the test pictures, the training loss of each epoch."""

    def __init__(self, say):
        self.say, self.accuracy, self.loss = say, [], []

    def on_train_epoch_end(self, trainer, module):
        """Keep the mean loss."""
        self.loss.append(round(float(trainer.callback_metrics["train_loss"]), 4))

    def on_validation_end(self, trainer, module):
        """Keep the accuracy."""
        self.accuracy.append(round(100 * float(trainer.callback_metrics["val_acc"]), 2))
        self.say(f"epoch {trainer.current_epoch + 1:3}: {self.accuracy[-1]:.2f} %")


def load(folder, per_class):
    """Return the pictures and classes of both parts, and which rows are whose."""
    parts = []
    with np.load(Path(folder) / "cifar10_subset.npz") as file:
        for part, most in (("train", per_class), ("test", None)):
            data, offsets, labels = (file[f"{part}_{name}"] for name in ("jpeg", "offsets", "labels"))
            pictures = [decode_jpeg(torch.from_numpy(data[a:b].copy())) for a, b in itertools.pairwise(offsets)]
            images, classes = torch.stack(pictures), torch.from_numpy(labels).long()
            rows = torch.cat([(classes == number).nonzero()[:most, 0] for number in range(10)])
            parts.append((images[rows], classes[rows]))
    sizes = [len(labels) for _, labels in parts]
    split = {"train": range(sizes[0]), "val": range(sizes[0], sum(sizes))}
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]), split


def train(data, seed, epochs, say):
    """Return what one training gives: accuracies in per cent, losses per epoch."""
    pl.seed_everything(seed, verbose=False)
    model = OneCycle(lt.ConvNet(3, 10, channels=CHANNELS), num_classes=10).to(memory_format=torch.channels_last)
    curve = Curve(say)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[curve],
        check_val_every_n_epoch=EVERY,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    trainer.fit(model, data)
    seconds = time.process_time() - start
    return {
        "test_accuracy": curve.accuracy,
        "training_accuracy": round(training_accuracy(model, data), 2),
        "training_loss": curve.loss,
        "cpu_seconds_per_epoch": round(seconds / epochs, 2),
    }


def training_accuracy(model, data):
    """Return the accuracy on the training pictures as they are, in per cent."""
    plain = lt.BatchAugment([], mean=data.mean.tolist(), std=data.std.tolist())
    rows = torch.tensor(data.parts["train"].rows).split(500)
    model.eval()
    with torch.no_grad():
        right = 0
        for index in rows:
            images, labels = data.parts["train"].source.read(index.tolist(), 0)
            right += int((model(plain(images, index=index, epoch=0).images).argmax(1) == labels).sum())
    return 100 * right / len(data.parts["train"])


def draw(runs, path):
    from lightning_tricks.plots import new_figure
    from lightning_tricks.plots._style import COLORS, DASHES

    figure, ax = new_figure(width=5.5, height=3.4)
    for (arm, rows), color, dash in zip(runs.items(), COLORS, DASHES, strict=False):
        curves = np.array([row["test_accuracy"] for row in rows])
        at = EVERY * np.arange(1, curves.shape[1] + 1)
        for curve in curves:
            ax.plot(at, curve, color=color, alpha=0.25, linewidth=0.8)
        label = f"{arm}: {curves[:, -1].mean():.1f} %"
        ax.plot(at, curves.mean(0), color=color, linestyle=dash, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel("test accuracy (%)")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def table(runs):
    """Print one row per arm; gains are over the first arm, seed by seed."""
    first = [row["test_accuracy"][-1] for row in next(iter(runs.values()))]
    print(f"\n{'arm':20}{'test accuracy':>18}{'gain':>16}{'training accuracy':>20}{'last loss':>11}{'CPU s/epoch':>13}")
    for arm, rows in runs.items():
        last = [row["test_accuracy"][-1] for row in rows]
        gains = [a - b for a, b in zip(last, first, strict=True)]
        line = "".join(
            f"{statistics.mean(values):10.2f} ± {statistics.stdev(values) / len(values) ** 0.5:4.2f}"
            for values in (last, gains)
        )
        rest = [statistics.mean(row[name] for row in rows) for name in ("training_accuracy", "cpu_seconds_per_epoch")]
        loss = statistics.mean(row["training_loss"][-1] for row in rows)
        print(f"{arm:20}{line}{rest[0]:20.2f}{loss:11.3f}{rest[1]:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--per-class", type=int, default=300, help="training pictures of each class")
    parser.add_argument("--epochs", type=int, default=32, help=f"a multiple of {EVERY}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["none", "standard"])
    parser.add_argument("--runs", type=Path, default=Path("augment_worth.jsonl"))
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    lines = args.runs.read_text().splitlines() if args.runs.exists() else []
    done = {(row["arm"], row["seed"], row["epochs"], row["per_class"]): row for row in map(json.loads, lines)}
    images, labels, split = load(args.folder, args.per_class)
    for seed, arm in itertools.product(args.seeds, args.arms):
        key = (arm, seed, args.epochs, args.per_class)
        if key in done:
            continue
        data = lt.ImageDataModule.from_arrays(
            images, labels, split=split, augment=ARMS[arm], batch_size=BATCH, seed=seed, log_batch=False
        )
        row = train(data, seed, args.epochs, lambda line, a=arm, s=seed: print(a, s, line, flush=True))
        done[key] = dict(zip(("arm", "seed", "epochs", "per_class"), key, strict=True)) | row
        with args.runs.open("a") as file:
            file.write(json.dumps(done[key]) + "\n")
    runs = {arm: [done[arm, seed, args.epochs, args.per_class] for seed in args.seeds] for arm in args.arms}
    if len(args.seeds) > 1:
        table(runs)
    print(json.dumps({"benchmark": "augment_worth", "runs": runs}))
    if args.out:
        draw(runs, args.out)


if __name__ == "__main__":
    main()
