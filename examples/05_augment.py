"""Augment: 100 labelled digits, as they are and changed anew in every epoch.

Run: python examples/05_augment.py [--out pictures] [--quick]

Small turns, shifts and changes of size do not change a digit. Validation digits are upright like those of the training,
so there the augmented net is no better, and it takes longer to get there. What it has gained shows on digits that are
turned: it has learned that turning does not matter.
"""

import lightning as L
import torch
from _pictures import options, save
from sklearn.datasets import load_digits
from torchvision.transforms.functional import InterpolationMode, rotate

import lightning_tricks as lt
from lightning_tricks.data.augment import Rotate, Scale, Translate
from lightning_tricks.plots import COLORS, DASHES, learning_curves, new_figure

CHANGES = [Rotate(20), Translate(0.1), Scale((0.9, 1.1))]
ANGLES = range(-40, 41, 10)


class ValidationAccuracy(L.Callback):
    """Keeps the accuracy of each validation."""

    def on_fit_start(self, trainer, pl_module):
        """Start anew."""
        self.values = []

    def on_validation_end(self, trainer, pl_module):
        """Keep the value."""
        self.values.append((trainer.current_epoch, float(trainer.callback_metrics["val_acc"])))


def main(out, quick=False):
    curves, turned = {}, {}
    for name, augment in (("as they are", "none"), ("changed anew in each epoch", CHANGES)):
        L.seed_everything(0, verbose=False)
        data = digits(augment)
        model = lt.Classifier(lt.ConvNet(1, 10, channels=(16, 32), dropout=0.2), num_classes=10, lr=2e-3)
        accuracy = ValidationAccuracy()
        trainer = L.Trainer(
            max_epochs=2 if quick else 160,
            check_val_every_n_epoch=1 if quick else 8,
            callbacks=[lt.WeightInit(), accuracy],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, data)
        curves[name] = accuracy.values
        turned[name] = accuracies(model.eval(), data)
        print(f"{name}: upright {accuracy.values[-1][1]:.3f}, turned by 20° {turned[name][ANGLES.index(20)]:.3f}")
    save(data.show_batch(), out / "before_and_after.png")
    save(learning_curves(curves, ylabel="validation accuracy", log_scale=False), out / "accuracy.png")
    save(picture(turned), out / "turned.png")
    return turned


def digits(augment):
    sixteenths, labels = load_digits(return_X_y=True)
    pictures = (sixteenths * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)
    return lt.ImageDataModule.from_arrays(
        pictures, labels, split=(100 / 1797, 697 / 1797, 1000 / 1797), batch_size=20, augment=augment, seed=0
    )


@torch.inference_mode()
def accuracies(model, data):
    """Return the share of right answers on validation pictures turned by each of the angles."""
    pictures, labels = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    settings = {"interpolation": InterpolationMode.BILINEAR, "fill": float(pictures.min())}
    answers = (model(rotate(pictures, angle, **settings)).argmax(-1) for angle in ANGLES)
    return [float((answer == labels).float().mean()) for answer in answers]


def picture(turned):
    figure, ax = new_figure()
    for (name, values), color, dash in zip(turned.items(), COLORS, DASHES, strict=False):
        ax.plot(ANGLES, values, color=color, linestyle=dash, marker="o", markersize=3, label=name)
    ax.set(xlabel="turned by (degrees)", ylabel="accuracy", xticks=list(ANGLES), ylim=(0, 1))
    ax.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main(**options(__doc__))
