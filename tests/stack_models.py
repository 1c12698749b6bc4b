"""Models, data and comparisons that the tests of stacks share."""

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt

CPU = {"accelerator": "cpu", "num_sanity_val_steps": 0}


class Loaders(LightningDataModule):
    def __init__(self, train, val=None):
        super().__init__()
        self.train, self.val = train, val or train

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.val


def digits(batch_size=50, shuffle=False):
    """A few real pictures: enough to learn something from, and quickly read."""
    x, y = (torch.as_tensor(column) for column in load_digits(return_X_y=True))
    x = (x.float() / 16).view(-1, 1, 8, 8)
    train = DataLoader(TensorDataset(x[:200], y[:200]), batch_size, shuffle=shuffle)
    return Loaders(train, DataLoader(TensorDataset(x[200:300], y[200:300]), 60))


def make_net(kind, dropout=0.0):
    torch.manual_seed(1)
    return {
        "mlp": lambda: lt.MLP(64, 10, hidden_features=(12, 8), dropout=dropout),
        "layer": lambda: lt.MLP(64, 10, hidden_features=(12,), norm="layer", activation="gelu"),
        "conv": lambda: lt.ConvNet(1, 10, channels=(3, 4)),
        "group": lambda: lt.ConvNet(1, 10, channels=(3, 4), norm="layer"),
        "own": lambda: Own(),
    }[kind]()


class Own(nn.Module):
    """A forward of its own, which only vmap can run."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(64, 10), nn.Linear(64, 10), nn.BatchNorm1d(10)
        self.slope = slope

    def forward(self, x):
        x = x.flatten(1)
        return self.norm(self.one(x)) * torch.sigmoid(self.slope * self.two(x))


def make_models(kind, optimizer, settings=((1e-3, 0.0, 0.0), (1e-2, 0.1, 0.1))):
    return [
        lt.Classifier(make_net(kind), 10, optimizer=optimizer, lr=lr, weight_decay=decay, label_smoothing=smoothing)
        for lr, decay, smoothing in settings
    ]


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def watch():
    return [
        lt.ReduceLROnPlateau("val_loss", factor=0.3, patience=0),
        lt.EarlyStopping("val_loss", patience=2, divergence_threshold=2.8),
    ]


class Handmade(LightningModule):
    """As people write them."""

    def __init__(self, lr=0.01, kind="mlp", dropout=0.0):
        super().__init__()
        self.net = make_net(kind, dropout)
        self.lr = lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.net(x), y)}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        self.log("val_loss", nn.functional.cross_entropy(out, y), prog_bar=True)
        self.log_dict({"val_right": (out.argmax(-1) == y).float().mean(), "val_size": len(y)})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Chatty(Callback):
    pass
