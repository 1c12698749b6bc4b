"""What training many small nets as one stack saves: 64 MLPs (13-50-1, batches of 128, Adam) on one core.

    python -m benchmarks.vectorised [--models 64] [--epochs 4] [--rounds 8] [--few 2]

Side by side, in CPU time of one thread, for the same nets, rows and number of epochs, validation after each epoch:

- ``fit_stacked``: one stack, learning rate, weight decay and early stopping of each its own, as in a search;
- ``Trainer.fit``, one model after another, with the same callbacks: a few of them, times the number of models;
- a bare torch loop, one model after another: batches sliced beforehand, fused Adam, no metrics but the validation loss.

Setting up counts: a fit is measured as a whole. In a second table the training steps alone, without any Trainer: the
stack by batched products, the stack by ``torch.func.vmap``, and the bare loop.
"""

import argparse
import logging
import warnings

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

import lightning_tricks as lt
from benchmarks.timing import interleaved, report
from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._optimizer import StackedOptimizer
from lightning_tricks.stacked.optimizers import spec_of

ROWS, INPUTS, HIDDEN, BATCH = 1280, 13, 50, 128
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}


def make_data() -> lt.TabularDataModule:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    y = (np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=ROWS)).astype(np.float32)
    return lt.TabularDataModule(x, y, batch_size=BATCH, seed=0)


def make_models(count: int, norm: str = "none") -> list[lt.Regressor]:
    torch.manual_seed(0)
    return [
        lt.Regressor(
            lt.MLP(INPUTS, 1, hidden_features=(HIDDEN,), norm=norm),
            lr=10 ** (-4 + 2 * i / count),
            weight_decay=1e-4 * (i % 4),
        )
        for i in range(count)
    ]


def make_callbacks() -> list:
    return [lt.EarlyStopping("val_loss", patience=1000)]


def whole_fits(models: int, epochs: int, rounds: int, few: int) -> dict[str, float]:
    data = make_data()
    data.setup("fit")
    batches = [tuple(batch) for batch in data.train_dataloader()]
    held_out = [tuple(batch) for batch in data.val_dataloader()]

    def stacked() -> None:
        lt.fit_stacked(
            make_models(models), data, callbacks=make_callbacks, trainer_kwargs={**options, "max_epochs": epochs}
        )

    def one_by_one() -> None:
        for model in make_models(models)[:few]:
            trainer = Trainer(**QUIET, **options, max_epochs=epochs, callbacks=make_callbacks())
            trainer.fit(model, data)

    def bare() -> None:
        for model in make_models(models)[:few]:
            optimizer = model.configure_optimizers()
            for _ in range(epochs):
                for x, y in batches:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y.view(-1, 1)).backward()
                    optimizer.step()
                with torch.no_grad():
                    sum(float(F.mse_loss(model(x), y.view(-1, 1))) * len(y) for x, y in held_out)

    options = {"accelerator": "cpu", "num_sanity_val_steps": 0}
    times = interleaved({"fit_stacked": stacked, "Trainer.fit": one_by_one, "bare loop": bare}, rounds=rounds)
    share = models / few
    times["Trainer.fit"] = [seconds * share for seconds in times["Trainer.fit"]]
    times["bare loop"] = [seconds * share for seconds in times["bare loop"]]
    facts = {"models": models, "epochs": epochs, "steps": epochs * len(batches), "measured_one_by_one": few}
    return report(f"whole fits of {models} nets", times, base="fit_stacked", **facts)


def steps_alone(name: str, nets: list, x: torch.Tensor, y: torch.Tensor, rounds: int, few: int) -> None:
    """Time training steps without a Trainer, the stack in both ways."""
    count = len(nets)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, fused=True) for net in nets]
    classes = not y.is_floating_point()

    def losses(out: torch.Tensor) -> torch.Tensor:
        if classes:
            return F.cross_entropy(out.transpose(1, 2), y.expand(count, -1), reduction="none").mean(1)
        return (out - y).square().mean((1, 2))

    def stack(way: str):
        net = StackedNet(nets)
        net.way = way
        optimizer = StackedOptimizer(net.weights, spec_of(optimizers, nets))

        def step() -> None:
            optimizer.zero_grad()
            losses(net(x)).sum().backward()
            optimizer.step()

        return step

    def bare() -> None:
        for net, optimizer in zip(nets[:few], optimizers, strict=False):
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) if classes else F.mse_loss(net(x), y)).backward()
            optimizer.step()

    times = interleaved({"stack": stack("chain"), "stack by vmap": stack("vmap"), "bare loop": bare}, rounds=rounds)
    times["bare loop"] = [seconds * count / few for seconds in times["bare loop"]]
    report(f"training steps, {name}, {count} nets", times, base="stack")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--few", type=int, default=2, help="how many are trained one by one, to be multiplied")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    whole_fits(args.models, args.epochs, args.rounds, args.few)
    rounds, few = 2 * args.rounds, 2 * args.few
    rows, digits = torch.randn(BATCH, INPUTS), torch.randn(BATCH, 64)
    labels = torch.randint(10, (BATCH,))
    nets = [model.net for model in make_models(args.models)]
    steps_alone("MLP 13-50-1", nets, rows, torch.randn(BATCH, 1), rounds, few)
    nets = [lt.MLP(64, 10, hidden_features=(128,)) for _ in range(args.models)]
    steps_alone("MLP 64-128-10 with batch norm", nets, digits, labels, rounds, few)
    nets = [lt.ConvNet(1, 10, channels=(8, 16)) for _ in range(args.models // 4)]
    steps_alone("ConvNet 8-16 on 8x8", nets, digits.view(-1, 1, 8, 8), labels, args.rounds, few)


if __name__ == "__main__":
    main()
