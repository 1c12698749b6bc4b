"""Augment: 100 labelled digits, as they are and changed anew in every epoch.

Run: python examples/05_augment.py [--out pictures] [--quick]

With so few pictures a net learns them by heart. Small turns, shifts and changes of size make it look at the strokes.
"""

import lightning as L
from _pictures import options, save
from sklearn.datasets import load_digits

import lightning_tricks as lt
from lightning_tricks.data.augment import Rotate, Scale, Translate
from lightning_tricks.plots import learning_curves

CHANGES = [Rotate(10), Translate(0.1), Scale((0.9, 1.1))]


class ValidationAccuracy(L.Callback):
    """Keeps the accuracy after each epoch."""

    def on_fit_start(self, trainer, pl_module):
        """Start anew."""
        self.values = []

    def on_validation_end(self, trainer, pl_module):
        """Keep the value."""
        self.values.append((trainer.current_epoch, float(trainer.callback_metrics["val_acc"])))


def main(out, quick=False):
    curves = {}
    for name, augment in (("as they are", "none"), ("changed anew in each epoch", CHANGES)):
        L.seed_everything(0, verbose=False)
        data = digits(augment)
        model = lt.Classifier(lt.ConvNet(1, 10, channels=(16, 32), dropout=0.2), num_classes=10, lr=2e-3)
        accuracy = ValidationAccuracy()
        trainer = L.Trainer(
            max_epochs=2 if quick else 240,
            check_val_every_n_epoch=1 if quick else 8,
            callbacks=[lt.WeightInit(), accuracy],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, data)
        curves[name] = accuracy.values
        print(f"{name}: validation accuracy {accuracy.values[-1][1]:.3f}")
    save(data.show_batch(), out / "before_and_after.png")
    save(learning_curves(curves, ylabel="validation accuracy", log_scale=False), out / "accuracy.png")
    return {name: values[-1][1] for name, values in curves.items()}


def digits(augment):
    sixteenths, labels = load_digits(return_X_y=True)
    pictures = (sixteenths * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)
    return lt.ImageDataModule.from_arrays(
        pictures, labels, split=(100 / 1797, 697 / 1797, 1000 / 1797), batch_size=20, augment=augment, seed=0
    )


if __name__ == "__main__":
    main(**options(__doc__))
