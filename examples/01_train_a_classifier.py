"""Train a classifier on handwritten digits with the course's advice, in one line of callbacks.

Run: python examples/01_train_a_classifier.py [--out pictures] [--quick]

The data are 1,797 real digits that scikit-learn ships. `lt.recipe("val_loss")` initialises, lowers the learning rate on
plateaus, stops early with the best weights, watches the norms, and makes resuming exact.
"""

import csv
from collections import defaultdict

import lightning as L
from _pictures import options, save
from lightning.pytorch.loggers import CSVLogger

import lightning_tricks as lt
from lightning_tricks.plots import learning_curves


def main(out, quick=False):
    L.seed_everything(0, verbose=False)
    data = lt.DigitsDataModule(batch_size=64, seed=0)  # 60 % training, 20 % validation, 20 % test, by class
    net = lt.MLP(64, 10, hidden_features=(128, 128), dropout=0.5)
    model = lt.Classifier(net, num_classes=10, optimizer="adam", lr=3e-3, weight_decay=1e-4)

    callbacks = lt.recipe("val_loss", patience=4 if quick else 12)
    logger = CSVLogger(out, name="train")
    trainer = L.Trainer(
        max_epochs=2 if quick else 60, callbacks=callbacks, logger=logger, accelerator="cpu", log_every_n_steps=10
    )
    trainer.fit(model, data)
    (scores,) = trainer.test(model, data)

    stopping = next(callback for callback in callbacks if isinstance(callback, lt.EarlyStopping))
    plateau = next(callback for callback in callbacks if isinstance(callback, lt.ReduceLROnPlateau))
    print(stopping.message)
    figure = learning_curves(
        curves(f"{logger.log_dir}/metrics.csv", "train_loss", "val_loss"),
        best_epoch=stopping.best_epoch,
        lr_drops=[(drop.epoch, drop.new_lr) for drop in plateau.reductions],
        ylabel="loss (nats)",
    )
    save(figure, out / "learning_curves.png")
    return scores


def curves(path, *names):
    """Read (epoch, value) pairs of each metric out of the file that CSVLogger wrote."""
    found = defaultdict(list)
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        for row in csv.DictReader(file):
            for name in names:
                if row.get(name):
                    found[name].append((float(row["epoch"]), float(row[name])))
    return found


if __name__ == "__main__":
    print(main(**options(__doc__)))
