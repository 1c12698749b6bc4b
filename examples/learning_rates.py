"""Draw the learning-rate pictures: too high, right and too low; and the drops of the loss where a plateau ends.

Run: python examples/learning_rates.py [--out pictures] [--quick]

Real runs on the handwritten digits, a few seconds each.
"""

import torch
from _pictures import options, save
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_tricks import MLP, Classifier, DigitsDataModule, ReduceLROnPlateau
from lightning_tricks.plots import COLORS, DASHES, new_figure


class Record(Callback):
    """Keeps the mean training loss, the validation loss and the learning rate of every epoch."""

    def __init__(self):
        self.losses, self.validation, self.rates = [], [], []
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Keep the batch's loss."""
        self.batches.append(float(outputs["loss"].detach()))

    def on_train_epoch_end(self, trainer, pl_module):
        """Close the epoch."""
        self.losses.append(sum(self.batches) / len(self.batches))
        self.batches = []
        self.validation.append(float(trainer.callback_metrics["val_loss"]))

    def on_train_epoch_start(self, trainer, pl_module):
        """Keep the epoch's rate."""
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(lr, epochs, *callbacks, optimizer="sgd", dropout=0.0):
    seed_everything(0, verbose=False)
    net = MLP(64, 10, hidden_features=(64,), norm="none", dropout=dropout)
    model = Classifier(net, num_classes=10, optimizer=optimizer, lr=lr)
    record = Record()
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[record, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, DigitsDataModule())
    return record


def rates_picture(epochs):
    figure, ax = new_figure()
    runs = (("much too high", 12.0), ("too high", 3.0), ("right", 0.3), ("too low", 0.003))
    for (name, lr), color, dash in zip(runs, COLORS, DASHES, strict=False):
        losses = torch.tensor(train(lr, epochs).losses).nan_to_num(nan=10, posinf=10).clamp(max=10)
        ax.plot(range(1, epochs + 1), losses, color=color, linestyle=dash, label=f"{name}: {lr:g}")
    ax.set(xlabel="epoch", ylabel="training loss", ylim=(0, 5))
    ax.legend(fontsize=8, frameon=False)
    ax.set_title("The learning rate makes or breaks the run (SGD, digits)", fontsize=10)
    return figure


def plateau_picture(epochs):
    plateau = ReduceLROnPlateau("val_loss", factor=0.1, patience=6)
    record = train(1.0, epochs, plateau, optimizer="sgd", dropout=0.5)
    figure, axes = new_figure(2, 1, height=4.4, sharex=True, height_ratios=(3, 1))
    numbers = range(1, len(record.losses) + 1)
    axes[0].plot(numbers, record.losses, color=COLORS[0], label="training")
    axes[0].plot(numbers, record.validation, color=COLORS[1], linestyle="--", label="validation")
    axes[0].set(ylabel="loss", yscale="log")
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].step(numbers, record.rates, where="mid", color=COLORS[2])
    axes[1].set(xlabel="epoch", ylabel="learning rate", yscale="log")
    for epoch in (i + 1 for i in range(1, len(record.rates)) if record.rates[i] < record.rates[i - 1]):
        for ax in axes:
            ax.axvline(epoch, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].set_title("Where the loss stagnates, a lower rate lets it drop (ReduceLROnPlateau, digits)", fontsize=10)
    return figure


def main(out, quick=False):
    save(rates_picture(2 if quick else 25), out / "learning_rates.png")
    save(plateau_picture(2 if quick else 50), out / "plateau_drops.png")


if __name__ == "__main__":
    main(**options(__doc__))
