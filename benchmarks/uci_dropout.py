"""Gal & Ghahramani's dropout table (2016, table 1), all grid points and splits of a set trained together.

    python -m benchmarks.uci_dropout FOLDER [--sets bostonHousing concrete energy] [--checkpoints FOLDER]

FOLDER holds one ``NAME.npz`` per set: ``X (n, d)``, ``y (n,)``, index arrays ``train_0``, ``test_0``, ``train_1``, ...
and the grid ``dropout_rates`` and ``tau_values``, ``n_hidden``, ``n_epochs``. Their protocol:

- dropout before both layers of a ReLU net with one hidden layer, Adam at 1e-3, batches of 128, mean squared error,
  ``40 x 100`` epochs, inputs and target standardised with the training part;
- L2 penalty ``l^2 (1 - p) / (2 N tau)`` on the weight matrices, ``l = 0.01``;
- per split, the grid point with the best log-likelihood on the last fifth of the training part is trained anew on all
  of it; the test log-likelihood is that of the mixture of T = 10,000 passes with noise precision ``tau``.

A model is a slice of stacked parameters ``(M, d, h)``. Adam and the penalty are elementwise and the losses are summed,
so each slice learns exactly as it would alone. Slices of one split see the same order of batches, each its own masks.
"""

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_tricks.tune._stack_masks import keep_mask
from lightning_tricks.uncertainty import mixture_log_likelihood

LENGTH_SCALE = 1e-2
BATCH = 128
GROUP = 3  # splits trained at a time: 36 nets' activations fit a core's cache, 240 took twice as long per net
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

    def __getitem__(self, splits: slice) -> "Part":
        return Part(*(getattr(self, field.name)[splits] for field in fields(self)))


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


class StackedNet:
    """M nets of one hidden layer side by side, with gradients written out: half the time of autograd's.

    Rows are on the last axis, which keeps every product contiguous. A mask is 0 or 1; its factor 1 / (1 - rate) goes
    into the weights behind it.
    """

    def __init__(self, models: int, inputs: int, hidden: int, rate: Tensor, generator: torch.Generator) -> None:
        def glorot(rows: int, columns: int) -> Tensor:  # Keras's default
            bound = math.sqrt(6 / (rows + columns))
            return torch.empty(models, rows, columns).uniform_(-bound, bound, generator=generator)

        self.weights = [glorot(hidden, inputs), glorot(1, hidden)]
        self.biases = [torch.zeros(models, hidden, 1), torch.zeros(models, 1, 1)]
        self.rate = rate.reshape(-1, 1, 1)
        self.scale = (1 / (1 - rate)).reshape(-1, 1, 1)
        self.generator = generator

    def parameters(self) -> list[Tensor]:
        """Return weights, then biases."""
        return [*self.weights, *self.biases]

    def masks(self, *shape: int) -> Tensor:
        """Return fresh zeros and ones; models are on the first axis."""
        return keep_mask(shape, self.rate, self.generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return one pass ``(M, 1, B)`` for ``x (M, d, B)``, the masked inputs and the masked activations."""
        x = x * self.masks(*x.shape)
        hidden = torch.baddbmm(self.biases[0], self.weights[0] * self.scale, x).relu_()  # (M, h, B)
        hidden.mul_(self.masks(*hidden.shape))
        return torch.baddbmm(self.biases[1], self.weights[1] * self.scale, hidden), x, hidden

    def backward(self, x: Tensor, y: Tensor, penalty: Tensor) -> None:
        """Set gradients of mean squared error ``+ penalty * |W|^2`` per model; ``x (M, d, B)``, ``y (M, 1, B)``."""
        out, x, hidden = self.forward(x)
        error = (out - y).mul_(2 / y.shape[-1])
        output_weight = self.weights[1] * self.scale  # (M, 1, h)
        self.weights[1].grad = torch.bmm(error, hidden.mT).mul_(self.scale)
        self.biases[1].grad = error.sum(-1, keepdim=True)
        error = hidden.sign_().mul_(output_weight.mT).mul_(error)  # through ReLU and mask: where a unit is above 0
        self.weights[0].grad = torch.bmm(error, x.mT).mul_(self.scale)
        self.biases[0].grad = error.sum(-1, keepdim=True)
        for weight in self.weights:
            weight.grad.add_(2 * penalty * weight)  # type: ignore[union-attr]  # set above

    def pick(self, models: slice) -> "StackedNet":
        """Return some of the models, sharing their parameters and the random stream."""
        chosen = copy.copy(self)
        chosen.weights = [weight[models] for weight in self.weights]
        chosen.biases = [bias[models] for bias in self.biases]
        chosen.rate, chosen.scale = self.rate[models], self.scale[models]
        return chosen


class Adam:
    """Adam with Keras's defaults, for many small tensors: ``torch.optim`` spends more on bookkeeping than on these."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.step_count = parameters, 0
        self.mean = [torch.zeros_like(parameter) for parameter in parameters]
        self.square = [torch.zeros_like(parameter) for parameter in parameters]

    def step(self) -> None:
        """Use the gradients that are set."""
        self.step_count += 1
        rate = 1e-3 * math.sqrt(1 - 0.999**self.step_count) / (1 - 0.9**self.step_count)
        for parameter, mean, square in zip(self.parameters, self.mean, self.square, strict=True):
            mean.lerp_(parameter.grad, 0.1)
            square.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            parameter.addcdiv_(mean, square.sqrt().add_(1e-7), value=-rate)


def train(
    part: Part, rate: Tensor, tau: Tensor, *, hidden: int, epochs: int, seed: int, checkpoint: Path | None
) -> StackedNet:
    """Train one net per split and grid point; ``rate`` and ``tau`` are ``(S, G)``."""
    splits, rows, inputs = part.x.shape
    grid = rate.shape[1]
    generator = torch.Generator().manual_seed(seed)
    net = StackedNet(splits * grid, inputs, hidden, rate.flatten(), generator)
    penalty = (LENGTH_SCALE**2 * (1 - rate) / (2 * rows * tau)).reshape(-1, 1, 1)
    optimizer = Adam(net.parameters())
    first, seconds = restore(checkpoint, net, optimizer, generator)
    start = time.process_time() - seconds
    for epoch in range(first, epochs):
        order = torch.rand(splits, rows, generator=generator).argsort(1)
        for batch in order.split(BATCH, dim=1):
            x = part.x.gather(1, batch[..., None].expand(-1, -1, inputs)).mT  # (S, d, B)
            y = part.y.gather(1, batch)[:, None]  # (S, 1, B)
            net.backward(x.repeat_interleave(grid, 0), y.repeat_interleave(grid, 0), penalty)
            optimizer.step()
        if checkpoint and ((epoch + 1) % 100 == 0 or epoch + 1 == epochs):
            seconds = time.process_time() - start
            save(checkpoint, net, optimizer, generator, epoch + 1, seconds)
            print(f"{checkpoint.stem}: epoch {epoch + 1}, {seconds:.0f} s", flush=True)
    return net


def save(path: Path, net: StackedNet, optimizer, generator, epoch: int, seconds: float) -> None:
    state = {
        "parameters": net.parameters(),
        "optimizer": [optimizer.step_count, optimizer.mean, optimizer.square],
        "generator": generator.get_state(),
        "epoch": epoch,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def restore(path: Path | None, net: StackedNet, optimizer, generator) -> tuple[int, float]:
    if path is None or not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for parameter, old in zip(net.parameters(), state["parameters"], strict=True):
        parameter.copy_(old)
    optimizer.step_count, optimizer.mean, optimizer.square = state["optimizer"]
    generator.set_state(state["generator"])
    return state["epoch"], state["seconds"]


def sample(net: StackedNet, x: Tensor, passes: int, *, chunk: int = 5) -> Tensor:
    """Return ``(T, G, m)`` predictions of G models for the rows ``x (m, d)``, a few passes at a time (cache)."""
    models, (rows, inputs) = len(net.scale), x.shape
    parts = []
    for first in range(0, passes, chunk):
        size = min(chunk, passes - first)
        many = x.T[:, None].expand(models, inputs, size, rows).reshape(models, inputs, size * rows)
        parts.append(net.forward(many)[0].view(models, size, rows).transpose(0, 1))
    return torch.cat(parts)


def score(net: StackedNet, part: Part, tau: Tensor, passes: int) -> dict[str, Tensor]:
    """Return ``(S, G)`` scores on the new rows, in the target's own unit."""
    splits, grid = tau.shape
    scores: dict[str, list[Tensor]] = {"one_pass_rmse": [], "rmse": [], "log_likelihood": []}
    for split in range(splits):
        models = slice(split * grid, (split + 1) * grid)
        y_hat = sample(net.pick(models), part.x_new[split], passes) * part.scale[split] + part.mean[split]  # (T, G, m)
        y = part.y_new[split]
        scores["one_pass_rmse"].append((y_hat[0] - y).square().mean(-1).sqrt())
        scores["rmse"].append((y_hat.mean(0) - y).square().mean(-1).sqrt())
        nats = mixture_log_likelihood(y_hat, y.expand(grid, -1), tau=tau[split][:, None])
        scores["log_likelihood"].append(nats.mean(-1))
    return {name: torch.stack(values) for name, values in scores.items()}


def train_and_score(part: Part, rate: Tensor, tau: Tensor, *, passes: int, seed: int, path: Path | None, **options):
    """Train and score every split and grid point, a few splits at a time; returns ``(S, G)`` scores."""
    groups = []
    for first in range(0, len(rate), GROUP):
        few = slice(first, first + GROUP)
        checkpoint = path.with_name(f"{path.name}-{first}.pt") if path else None
        net = train(part[few], rate[few], tau[few], seed=seed + first, checkpoint=checkpoint, **options)
        groups.append(score(net, part[few], tau[few], passes))
    return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}


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
