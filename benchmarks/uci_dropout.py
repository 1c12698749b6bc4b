"""Gal & Ghahramani's dropout table (2016, table 1), all grid points and splits of a set trained together.

    python -m benchmarks.uci_dropout FOLDER [--sets bostonHousing concrete energy] [--checkpoints FOLDER]

FOLDER holds one ``NAME.npz`` per set: ``X (n, d)``, ``y (n,)``, index arrays ``train_0``, ``test_0``, ``train_1``, ...
and the grid ``dropout_rates`` and ``tau_values``, ``n_hidden``, ``n_epochs``. Their protocol:

- dropout before both layers of a ReLU net with one hidden layer, Adam at 1e-3, batches of 128, mean squared error,
  ``40 x 100`` epochs, inputs and target standardised with the training part;
- L2 penalty ``l^2 (1 - p) / (2 N tau)`` on the weight matrices, ``l = 0.01``;
- per split, the grid point with the best log-likelihood on the last fifth of the training part is trained anew on all
  of it; the test log-likelihood is that of the mixture of T = 10,000 passes with noise precision ``tau``.

All nets of a stage (20 splits x 12 grid points) train as one stack by ``fit_stacked``: each holds the rows of its own
split, the loader says which rows come next. The passes are drawn by ``mc_forward``.
"""

import argparse
import json
import logging
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tricks import ExactResume, fit_stacked, mc_forward
from lightning_tricks.uncertainty import mixture_log_likelihood

LENGTH_SCALE = 1e-2
BATCH = 128
SAVE_EVERY = 100  # epochs
PUBLISHED = {  # RMSE of one pass, RMSE of the mean, test log-likelihood; each with its standard error
    "bostonHousing": ((3.61, 0.23), (2.90, 0.18), (-2.40, 0.04)),
    "concrete": ((5.45, 0.19), (4.83, 0.16), (-2.94, 0.02)),
    "energy": ((0.97, 0.06), (0.54, 0.01), (-1.21, 0.01)),
}


@dataclass
class Part:
    """The standardised training rows of S splits and what to predict, as equal-length stacks."""

    x: Tensor  # (S, n, d)
    y: Tensor  # (S, n)
    x_new: Tensor  # (S, m, d)
    y_new: Tensor  # (S, m), in the target's own unit
    mean: Tensor  # (S,)
    scale: Tensor  # (S,)


def make_part(x: np.ndarray, y: np.ndarray, train: list[np.ndarray], new: list[np.ndarray]) -> Part:
    columns = []
    for old_rows, new_rows in zip(train, new, strict=True):
        scale = x[old_rows].std(0)
        scale[scale == 0] = 1  # a constant column stays zero, as in the original
        centre, mean, spread = x[old_rows].mean(0), y[old_rows].mean(), y[old_rows].std()
        columns.append(
            ((x[old_rows] - centre) / scale, (y[old_rows] - mean) / spread, (x[new_rows] - centre) / scale,
             y[new_rows], mean, spread)
        )  # fmt: skip
    return Part(*(torch.from_numpy(np.stack(column)).float() for column in zip(*columns, strict=True)))


class OwnRows(LightningModule):
    """A net with the rows that it learns from; a batch says which of them.

    Args:
        x: inputs ``(n, d)``.
        y: targets ``(n,)``.
        hidden: units.
        rate: probability of dropping, before both layers.
        penalty: factor of the squared weights in the loss.
    """

    def __init__(self, x: Tensor, y: Tensor, hidden: int, rate: float, penalty: float) -> None:
        super().__init__()
        layers = [nn.Linear(x.shape[1], hidden), nn.Linear(hidden, 1)]
        for layer in layers:  # Keras's defaults
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.net = nn.Sequential(nn.Dropout(rate), layers[0], nn.ReLU(), nn.Dropout(rate), layers[1])
        self.penalty = penalty
        self.register_buffer("x", x)
        self.register_buffer("y", y)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean squared error of these rows."""
        return (self.net(self.x[batch])[:, 0] - self.y[batch]).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the error with dropout off; nothing is decided by it."""
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with Keras's numbers; the gradient of ``penalty * W^2`` is a decay of ``2 * penalty``."""
        weights = [self.net[1].weight, self.net[4].weight]
        biases = [self.net[1].bias, self.net[4].bias]
        groups = [{"params": weights, "weight_decay": 2 * self.penalty}, {"params": biases}]
        return torch.optim.Adam(groups, lr=1e-3, eps=1e-7)


class RowNumbers(LightningDataModule):
    """Batches of row numbers, each once per epoch in a random order that depends on seed and epoch only."""

    def __init__(self, rows: int, seed: int) -> None:
        super().__init__()
        self.rows, self.seed = rows, seed

    def train_dataloader(self) -> DataLoader:
        """Return an epoch's batches."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.trainer.current_epoch)
        return DataLoader(torch.randperm(self.rows, generator=generator).split(BATCH), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Return all rows at once."""
        return DataLoader([torch.arange(self.rows)], batch_size=None)


def train(
    part: Part, rate: Tensor, tau: Tensor, *, hidden: int, epochs: int, seed: int, checkpoint: Path | None
) -> list[OwnRows]:
    """Train one net per split and grid point; ``rate`` and ``tau`` are ``(S, G)``."""
    torch.manual_seed(seed)
    rows = part.x.shape[1]
    penalty = LENGTH_SCALE**2 * (1 - rate) / (2 * rows * tau)
    models = [
        OwnRows(part.x[split], part.y[split], hidden, float(rate[split, point]), float(penalty[split, point]))
        for split in range(len(rate))
        for point in range(rate.shape[1])
    ]
    options = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "check_val_every_n_epoch": epochs,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "enable_checkpointing": checkpoint is not None,
        "enable_progress_bar": True,
    }
    watchers, ckpt_path = [], None
    if checkpoint:
        folder, name = checkpoint.parent, checkpoint.name
        often = {"every_n_epochs": SAVE_EVERY, "save_on_train_epoch_end": True, "enable_version_counter": False}
        watchers = [ExactResume(), ModelCheckpoint(folder, name, **often)]
        ckpt_path = checkpoint.with_suffix(".ckpt") if checkpoint.with_suffix(".ckpt").exists() else None
    fit_stacked(models, RowNumbers(rows, seed), trainer_kwargs=options, watchers=watchers, ckpt_path=ckpt_path)
    return models


def score(models: list[OwnRows], part: Part, tau: Tensor, passes: int, seed: int) -> dict[str, Tensor]:
    """Return ``(S, G)`` scores on the new rows, in the target's own unit."""
    scores = {name: torch.empty(tau.shape) for name in ("one_pass_rmse", "rmse", "log_likelihood")}
    for number, model in enumerate(models):
        at = divmod(number, tau.shape[1])
        split = at[0]
        y_hat = mc_forward(model.net, part.x_new[split], samples=passes, seed=seed + number)[..., 0]  # (T, m)
        y_hat, y = y_hat * part.scale[split] + part.mean[split], part.y_new[split]
        scores["one_pass_rmse"][at] = (y_hat[0] - y).square().mean().sqrt()
        scores["rmse"][at] = (y_hat.mean(0) - y).square().mean().sqrt()
        scores["log_likelihood"][at] = mixture_log_likelihood(y_hat, y, tau=tau[at]).mean()
    return scores


def train_and_score(part: Part, rate: Tensor, tau: Tensor, *, passes: int, seed: int, path: Path | None, **options):
    """Train and score every split and grid point; returns ``(S, G)`` scores."""
    models = train(part, rate, tau, seed=seed, checkpoint=path, **options)
    return score(models, part, tau, passes, seed)


def run_set(file: Path, *, multiplier: int, passes: int, seed: int, checkpoints: Path | None) -> dict:
    data = np.load(file)
    x, y = data["X"], data["y"].reshape(-1)
    splits = sum(name.startswith("train_") for name in data.files)
    train_rows = [data[f"train_{i}"].astype(int) for i in range(splits)]
    test_rows = [data[f"test_{i}"].astype(int) for i in range(splits)]
    rates = torch.as_tensor(data["dropout_rates"].reshape(-1)).float()
    taus = torch.as_tensor(data["tau_values"].reshape(-1)).float()
    rate, tau = (axis.flatten().expand(splits, -1) for axis in torch.meshgrid(rates, taus, indexing="ij"))
    options = {"hidden": int(data["n_hidden"].item()), "epochs": int(data["n_epochs"].item()) * multiplier}

    def path(stage: str) -> Path | None:
        return checkpoints / f"{file.stem}-{stage}-{options['epochs']}-{seed}" if checkpoints else None

    began = time.process_time()
    cut = int(0.8 * len(train_rows[0]))
    part = make_part(x, y, [rows[:cut] for rows in train_rows], [rows[cut:] for rows in train_rows])
    scores = train_and_score(part, rate, tau, passes=passes, seed=seed, path=path("grid"), **options)
    best = scores["log_likelihood"].argmax(1, keepdim=True)  # (S, 1)
    rate, tau = rate.gather(1, best), tau.gather(1, best)
    part = make_part(x, y, train_rows, test_rows)
    scores = train_and_score(part, rate, tau, passes=passes, seed=seed + 1000, path=path("final"), **options)
    row = {"set": file.stem, "splits": splits, "epochs": options["epochs"], "samples": passes, "seed": seed}
    for name, values in scores.items():
        row[name] = [round(values.mean().item(), 4), round(values.std().item() / math.sqrt(splits), 4)]
    row["dropout_rates"], row["taus"] = rounded(rate), rounded(tau)
    row["cpu_seconds"] = round(time.process_time() - began, 1)
    return row


def rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten().tolist()]


def show(rows: list[dict]) -> None:
    print("| set | | RMSE, one pass | RMSE, mean | test log-likelihood (nats) |\n|---|---|---|---|---|")
    for row in rows:
        ours = [row[name] for name in ("one_pass_rmse", "rmse", "log_likelihood")]
        for who, cells in (("here", ours), ("published", PUBLISHED.get(row["set"]))):
            if cells:
                print(
                    f"| {row['set']} | {who} |", " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in cells), "|"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="*", help="file names without .npz (all by default)")
    parser.add_argument("--multiplier", type=int, default=100, help="epochs = the file's n_epochs times this")
    parser.add_argument("--samples", type=int, default=10_000, help="T")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, help="folder to go on from after an interruption")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*logging interval|Checkpoint directory")
    if args.checkpoints:
        args.checkpoints.mkdir(parents=True, exist_ok=True)
    files = [args.folder / f"{name}.npz" for name in args.sets] if args.sets else sorted(args.folder.glob("*.npz"))
    rows = []
    for file in files:
        rows.append(
            run_set(file, multiplier=args.multiplier, passes=args.samples, seed=args.seed, checkpoints=args.checkpoints)
        )
        print(json.dumps(rows[-1]), flush=True)
    show(rows)
    print(json.dumps({"benchmark": "uci_dropout", "rows": rows}))


if __name__ == "__main__":
    main()
