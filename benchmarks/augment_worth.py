"""What is augmentation worth? A small ConvNet on a subset of CIFAR-10, with and without, over several seeds.

    python benchmarks/augment_worth.py DATA_FOLDER [--per-class 100] [--epochs 40] [--seeds 0 1 2]

``DATA_FOLDER`` holds ``cifar10_subset.npz``: JPEG bytes ``train_jpeg`` with ``train_offsets`` and ``train_labels``,
and the same for ``test_``. The net, the order of the samples, the optimizer (SGD with one cycle) and the number of steps
are the same in all arms (``--arms none standard ...``). Prints the accuracy of each arm on all test pictures, its gain
per seed, and one JSON line; ``--out FILE`` draws the curves.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.io import decode_jpeg

import lightning_tricks as lt
from lightning_tricks.data.augment import Brightness, Contrast, CutMix, Erase, Saturation, standard_ops

BATCH = 128
CHANNELS = (16, 32, 64)
EVERY = 10  # epochs between looks at the test pictures
STANDARD = standard_ops((3, 32, 32))
ARMS = {
    "none": [],
    "standard": STANDARD,
    "colour": [*STANDARD, Brightness(0.2), Contrast(0.2), Saturation(0.2)],
    "erase": [*STANDARD, Erase(0.5)],
    "cutmix": [*STANDARD, CutMix(1.0, p=0.5)],
}


def load(folder, part, per_class=None):
    with np.load(Path(folder) / "cifar10_subset.npz") as file:
        data, offsets, labels = (file[f"{part}_{name}"] for name in ("jpeg", "offsets", "labels"))
    pictures = [decode_jpeg(torch.from_numpy(data[a:b].copy())) for a, b in itertools.pairwise(offsets)]
    images, classes = torch.stack(pictures), torch.from_numpy(labels).long()
    if per_class is None:
        return images, classes
    rows = torch.cat([(classes == number).nonzero()[:per_class, 0] for number in classes.unique()])
    return images[rows], classes[rows]


def accuracy(net, images, labels, augment):
    net.eval()
    with torch.no_grad():
        right = [
            (net(augment(x, index=torch.arange(len(x)), epoch=0).images).argmax(1) == y).sum()
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    net.train()
    return 100 * float(sum(right)) / len(labels)


def train(ops, seed, epochs, train_part, test_part, statistics_, say):
    """Return the test accuracy after every few epochs, in per cent, and the mean training loss of the last epoch."""
    images, labels = train_part
    torch.manual_seed(seed)
    net = lt.ConvNet(3, 10, channels=CHANNELS)
    options = {"seed": seed, "num_classes": 10, **statistics_}
    augment, plain = lt.BatchAugment(ops, **options), lt.BatchAugment([], **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(images) // BATCH * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
    curve, loss_sum = [], 0.0
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        loss_sum = 0.0
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            batch = augment(images[index], index=index, epoch=epoch, labels=labels[index])
            loss = F.cross_entropy(net(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        if (epoch + 1) % EVERY == 0:
            curve.append(accuracy(net, *test_part, plain))
            say(f"epoch {epoch + 1:3}: {curve[-1]:.2f} %")
    return curve, loss_sum / (len(images) // BATCH)


def draw(curves, path):
    from lightning_tricks.plots import new_figure
    from lightning_tricks.plots._style import COLORS, DASHES

    figure, ax = new_figure(width=5.5, height=3.4)
    for (arm, rows), color, dash in zip(curves.items(), COLORS, DASHES, strict=False):
        rows = np.array(rows)
        at = EVERY * np.arange(1, rows.shape[1] + 1)
        for row in rows:
            ax.plot(at, row, color=color, alpha=0.25, linewidth=0.8)
        label = f"{arm}: {rows[:, -1].mean():.1f} %"
        ax.plot(at, rows.mean(0), color=color, linestyle=dash, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel("test accuracy (%)")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=40, help=f"a multiple of {EVERY}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["none", "standard"])
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = load(args.folder, "train", args.per_class), load(args.folder, "test")
    unit = parts[0][0].float() / 255
    moments = {"mean": unit.mean((0, 2, 3)).tolist(), "std": unit.std((0, 2, 3)).tolist()}
    curves: dict[str, list[list[float]]] = {arm: [] for arm in args.arms}
    losses: dict[str, list[float]] = {arm: [] for arm in args.arms}
    seconds = dict.fromkeys(args.arms, 0.0)
    for seed in args.seeds:
        for arm in args.arms:
            start = time.process_time()
            curve, loss = train(
                ARMS[arm], seed, args.epochs, *parts, moments, lambda line, a=arm, s=seed: print(a, s, line, flush=True)
            )
            seconds[arm] += time.process_time() - start
            curves[arm].append(curve)
            losses[arm].append(loss)
    print(f"\n{'arm':12}{'test accuracy':>20}{'gain over the first':>24}{'last training loss':>22}{'CPU s/epoch':>14}")
    report: dict[str, object] = {"benchmark": "augment_worth", "per_class": args.per_class, "epochs": args.epochs}
    first = [curve[-1] for curve in curves[args.arms[0]]]
    for arm in args.arms:
        last = [curve[-1] for curve in curves[arm]]
        gains = [a - b for a, b in zip(last, first, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        per_epoch = seconds[arm] / len(args.seeds) / args.epochs
        spread = statistics.stdev(last) if len(last) > 1 else float("nan")
        print(
            f"{arm:12}{statistics.mean(last):12.2f} ± {spread:4.2f}{statistics.mean(gains):+17.2f} ± {error:4.2f}"
            f"{statistics.mean(losses[arm]):22.3f}{per_epoch:14.1f}"
        )
        report[arm] = {
            "accuracy": last,
            "curves": curves[arm],
            "training_loss": losses[arm],
            "cpu_seconds_per_epoch": round(per_epoch, 2),
        }
    print(json.dumps(report))
    if args.out:
        draw(curves, args.out)


if __name__ == "__main__":
    main()
