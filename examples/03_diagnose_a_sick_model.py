"""Diagnose a sick model, before the first step and while it learns, and see what the cures are worth.

Run: python examples/03_diagnose_a_sick_model.py [--out pictures] [--quick]

The net trains without an error message, and badly. Three faults that one meets in real code can be known beforehand:
a softmax before a loss that applies its own, inputs that nobody scaled, and a layer whose weights are all alike. With
them cured, a learning rate that is far too high shows only while the net learns.
"""

import warnings

import lightning as L
import torch
from _pictures import options, save
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.plots import learning_curves


class Digits(L.LightningModule):
    """A plain LightningModule; ``sick`` puts the faults in."""

    def __init__(self, sick, lr):
        super().__init__()
        self.sick, self.lr = sick, lr
        self.hidden = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)
        self.accuracy = []
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
        self.accuracy.append((self.current_epoch, float(self.trainer.callback_metrics["val_acc"])))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def loaders(sick):
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    x = x * 16 if sick else (x - x[:1200].mean()) / x[:1200].std()  # 0 to 256, or standardised
    train, val = TensorDataset(x[:1200], y[:1200]), TensorDataset(x[1200:], y[1200:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256)


def main(out, quick=False):
    found, curves = {}, {}
    runs = [("sick", True, 0.1), ("learning rate too high", False, 8.0), ("cured", False, 0.1)]
    for name, sick, lr in runs[:1] if quick else runs:
        L.seed_everything(0, verbose=False)
        model, (train, val) = Digits(sick, lr), loaders(sick)
        print(f"\n{name}, before the first step:\n{lt.check(model, train)}")

        diagnosis = lt.Diagnosis(every_n_steps=10, report_path=out / f"{name.replace(' ', '_')}.html")
        trainer = L.Trainer(
            max_epochs=1 if quick else 20,
            callbacks=[diagnosis],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each finding is a warning, too
            trainer.fit(model, train, val)
        print(f"{name}, while it learned:", *diagnosis.findings or ["nothing"], sep="\n  ")
        found[name] = [finding.rule for finding in diagnosis.findings]
        curves[name] = model.accuracy
    figure = learning_curves(curves, ylabel="validation accuracy", log_scale=False)
    figure.axes[0].set_ylim(0, 1)
    save(figure, out / "sick_and_cured.png")
    return found


if __name__ == "__main__":
    main(**options(__doc__))
