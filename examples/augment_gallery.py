"""Draw what each augmentation does to a photograph that scikit-learn ships.

Run: python examples/augment_gallery.py [--out pictures] [--quick]

Every column is one operation, every row one draw of it: the same picture under four different indices. The script also
shows the three steps plan, fold, apply: the plan of a sample is printed before any pixel is touched.
"""

import numpy as np
import torch
from _pictures import options, save
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from lightning_tricks.data.augment import (
    AutoContrast,
    BatchAugment,
    Brightness,
    Contrast,
    Crop,
    CutMix,
    Equalize,
    Erase,
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Hue,
    MixUp,
    Perspective,
    RandAugment,
    RandomResizedCrop,
    Rotate,
    Saturation,
    Scale,
    Shear,
    TrivialAugment,
)
from lightning_tricks.plots import plot_augmented

DRAWS = 4
COLUMNS = {
    "Crop,\nflip": [Crop(12), HorizontalFlip()],
    "Rotate,\nScale": [Rotate(30), Scale((0.7, 1.3))],
    "Shear,\nPerspective": [Shear(15), Perspective(0.4, p=1.0)],
    "Resized\ncrop": [RandomResizedCrop(scale=(0.2, 0.8))],
    "Brightness,\nContrast": [Brightness(0.5), Contrast(0.5)],
    "Saturation,\nHue": [Saturation(0.8), Hue(0.15)],
    "Blur,\nNoise": [GaussianBlur(7, p=1.0, sigma=(0.5, 3)), GaussianNoise(0.08)],
    "Auto-\ncontrast": [AutoContrast(p=1.0)],
    "Equalize": [Equalize(p=1.0)],
    "Erase": [Erase(p=1.0)],
    "MixUp": [MixUp(1.0)],
    "CutMix": [CutMix(1.0)],
    "RandAug-\nment": [RandAugment(2, magnitude=15)],
    "Trivial-\nAugment": [TrivialAugment()],
}


def photographs(size: int = 72) -> torch.Tensor:
    """Return a flower, a temple, and both mirrored, as uint8 (4, 3, size, size)."""
    out = []
    for name in ("flower.jpg", "china.jpg"):
        photo = torch.from_numpy(np.array(load_sample_image(name))).permute(2, 0, 1)[None].float()
        square = photo[..., : photo.shape[2], 100 : 100 + photo.shape[2]]
        out.append(F.interpolate(square, (size, size), mode="area"))
    both = torch.cat(out).round().to(torch.uint8)
    return torch.cat([both, both.flip(3)])


def main(out, quick=False):
    images, index = photographs(), torch.arange(DRAWS)
    plan = BatchAugment([HorizontalFlip(), Rotate(30)]).plan(index, 0, images.shape)
    for op, params in plan.steps:
        print(op, {name: value.tolist() for name, value in params.items()})
    after = [BatchAugment(ops, seed=5)(images, index=index, epoch=0).images.numpy() for ops in COLUMNS.values()]
    save(plot_augmented(images.numpy(), after, list(COLUMNS)), out / "augmentations.png")


if __name__ == "__main__":
    main(**options(__doc__))
