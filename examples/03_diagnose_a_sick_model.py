"""Diagnose a sick model before the first step, and see what curing it is worth.

Run: python examples/03_diagnose_a_sick_model.py [--out pictures] [--quick]

The net below trains without an error message, and badly. It has four faults that one meets in real code: a softmax
before a loss that applies its own, inputs that nobody scaled, a layer that the optimizer never got, and all weights of
a layer alike.
"""

import lightning as L
import torch
from _pictures import options, save
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.plots import learning_curves


class Digits(L.LightningModule):
    """A plain LightningModule; ``sick`` puts the four faults in."""

    def __init__(self, sick):
        super().__init__()
        self.sick = sick
        self.hidden = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)
        self.losses = []
        if sick:
            nn.init.constant_(self.hidden[2].weight, 0.01)  # every unit learns the same

    def forward(self, x):
        logits = self.head(self.hidden(x))
        return logits.softmax(-1) if self.sick else logits  # cross_entropy applies a softmax of its own

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(-1) == batch[1]).float().mean())

    def on_validation_end(self):
        self.losses.append(float(self.trainer.callback_metrics["val_acc"]))

    def configure_optimizers(self):
        learns = self.hidden if self.sick else self  # the head was forgotten
        return torch.optim.SGD(learns.parameters(), lr=0.1)


def loaders(sick):
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    x = x * 16 if sick else (x - x[:1200].mean()) / x[:1200].std()  # 0 to 256, or standardised
    train, val = TensorDataset(x[:1200], y[:1200]), TensorDataset(x[1200:], y[1200:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256)


def main(out, quick=False):
    reports, accuracy = {}, {}
    for name, sick in (("sick", True), ("cured", False)):
        L.seed_everything(0, verbose=False)
        model, (train, val) = Digits(sick), loaders(sick)
        reports[name] = lt.check(model, train)
        print(f"\n{name}:\n{reports[name]}")
        trainer = L.Trainer(
            max_epochs=2 if quick else 20,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, train, val)
        accuracy[name] = list(enumerate(model.losses))
    out.mkdir(parents=True, exist_ok=True)
    reports["sick"].to_html(out / "sick.html")
    figure = learning_curves(accuracy, ylabel="validation accuracy", log_scale=False)
    figure.axes[0].set_ylim(0, 1)
    save(figure, out / "sick_and_cured.png")
    return reports


if __name__ == "__main__":
    main(**options(__doc__))
