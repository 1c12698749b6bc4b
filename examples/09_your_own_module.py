"""Somebody else's LightningModule, as it is: nothing of ours is needed in the model.

Run: python examples/09_your_own_module.py [--out pictures] [--quick]

A small vision transformer in the manner of timm and Hugging Face: attention with dropout inside, blocks that are
skipped at random (stochastic depth, written by hand), an optimizer and a schedule of its own. It is checked, trained
with the course's callbacks, and asked how sure it is.
"""

import lightning as L
import torch
from _pictures import options, save
from torch import nn
from torch.nn import functional as F

import lightning_tricks as lt
from lightning_tricks import plots


class Block(nn.Module):
    """Attention and an MLP, each on a normalised input, each skipped at random while training."""

    def __init__(self, dim, heads, drop, drop_path):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=drop, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * dim, dim))
        self.drop_path = drop_path

    def skip(self, x):
        if not self.training or self.drop_path == 0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.skip(self.attention(y, y, y, need_weights=False)[0])
        return x + self.skip(self.mlp(self.norm2(x)))


class TinyViT(L.LightningModule):
    """Digits of 8×8 pixels as 16 patches of 2×2."""

    def __init__(self, dim=48, depth=3, drop=0.1, drop_path=0.1):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.place = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, 4, drop, drop_path) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(dim=1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(-1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(out, quick=False):
    L.seed_everything(0, verbose=False)
    data, model = lt.DigitsDataModule(), TinyViT()
    print(lt.check(model, data))
    callbacks = lt.recipe("val_loss", patience=8)
    trainer = L.Trainer(
        max_epochs=1 if quick else 25,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, data)
    norms = next(callback for callback in callbacks if isinstance(callback, lt.NormMonitor))
    save(norms.plot("updates"), out / "updates.png")

    data.setup("test")
    pictures, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    predictor = lt.MCDropoutPredictor(model, samples=4 if quick else 50, task="multiclass", seed=0)
    batches = trainer.predict(predictor, data)
    sure = {key: torch.cat([batch[key] for batch in batches]) for key in ("label", "entropy")}
    print(predictor.report)
    figure = plots.most_uncertain_pictures(
        pictures,
        sure["entropy"],
        labels=labels.tolist(),
        predictions=sure["label"].tolist(),
        name="entropy (nats)",
    )
    save(figure, out / "most_uncertain.png")
    accuracy = float((sure["label"] == labels).float().mean())
    print(f"test accuracy, mean of the passes: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(**options(__doc__))
