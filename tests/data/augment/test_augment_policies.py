"""RandAugment and TrivialAugment choose among the published operations, at the published strengths."""

import numpy as np
import pytest
import torch
from augment_helpers import pictures
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lightning_tricks.data.augment import (
    BatchAugment,
    Brightness,
    Crop,
    GaussianBlur,
    ImageBatch,
    Plan,
    RandAugment,
    TrivialAugment,
)

BILINEAR = InterpolationMode.BILINEAR


def test_randaugment_gives_every_sample_one_operation_per_round():
    n = 7000
    steps = RandAugment(1, magnitude=15).steps(torch.rand(n, 3, generator=torch.Generator().manual_seed(0)), (32, 32))
    found = {type(op).__name__: params for op, params in steps}
    neutral = {"x": 0, "y": 0, "angle": 0, "factor": 1, "bits": 8, "threshold": torch.inf, "on": False}
    shear = [found["Shear"][axis] != 0 for axis in "xy"]
    shift = [(found["Translate"][axis] != 0) & ~(shear[0] | shear[1]) for axis in "xy"]  # shears move the centre
    others = [
        value != neutral[key]
        for name, params in found.items()
        if name not in ("Shear", "Translate")
        for key, value in params.items()
    ]
    active = torch.stack([*shear, *shift, *others])
    assert active.shape == (13, n)
    assert (active.sum(0) <= 1).all()
    rates = torch.cat([active.float().mean(1), (~active.any(0)).float().mean()[None]])
    torch.testing.assert_close(rates, torch.full((14,), 1 / 14), atol=5 * (1 / 14 / n) ** 0.5, rtol=0)
    angles = found["Rotate"]["angle"]
    assert angles[angles != 0].abs().unique().tolist() == [15]
    assert 0.4 < (angles[angles != 0] > 0).float().mean() < 0.6


# In the order of the choices: what torchvision's RandAugment and TrivialAugmentWide do for a signed magnitude, given
# the strongest shear (a tangent), shift (pixels along x and y), rotation, colour change and loss of bits.
PUBLISHED = [
    lambda x, s, most: x,
    lambda x, s, most: corner(x, shear=(s * most["shear"], 0)),
    lambda x, s, most: corner(x, shear=(0, s * most["shear"])),
    lambda x, s, most: corner(x, shift=(int(s * most["shift"][0]), 0)),
    lambda x, s, most: corner(x, shift=(0, int(s * most["shift"][1]))),
    lambda x, s, most: tv.rotate(x, -s * most["rotate"], interpolation=BILINEAR),  # the other way round
    lambda x, s, most: tv.adjust_brightness(x, 1 + s * most["factor"]),
    lambda x, s, most: tv.adjust_saturation(x, 1 + s * most["factor"]),
    lambda x, s, most: tv.adjust_contrast(x, 1 + s * most["factor"]),
    lambda x, s, most: tv.adjust_sharpness(x, 1 + s * most["factor"]),
    lambda x, s, most: tv.posterize((x * 255).round().byte(), 8 - round(abs(s) * most["bits"])) / 255,
    lambda x, s, most: tv.solarize(x, 1 - abs(s)),
    lambda x, s, most: tv.autocontrast(x),
    lambda x, s, most: tv.equalize(x),
]
POLICIES = {
    "RandAugment": (
        RandAugment(1, magnitude=10),
        {"shear": 0.3, "shift": (150 / 331 * 24, 150 / 331 * 20), "rotate": 30, "factor": 0.9, "bits": 4},
    ),
    "TrivialAugment": (
        TrivialAugment(),
        {"shear": 0.99, "shift": (32, 32), "rotate": 135, "factor": 0.99, "bits": 6},
    ),
}


@pytest.mark.parametrize("choice", range(len(PUBLISHED)))
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_choices_are_the_published_ones(name, choice, sign):
    policy, most = POLICIES[name]
    images = pictures(1, 3, 20, 24)
    u = torch.tensor([[(choice + 0.5) / 14, 10.5 / 31, 0.25 if sign < 0 else 0.75]])  # step 10 of 0 to 30
    plan = Plan(tuple(policy.steps(u, (20, 24))), (3, 20, 24), 1)
    out = BatchAugment([policy]).apply(ImageBatch(images), plan).images
    expected = PUBLISHED[choice](images.float() / 255, sign * 10 / 30, most)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def corner(x, shear=(0.0, 0.0), shift=(0, 0)):
    """Slant or shift as both policies do, with the upper left corner held still."""
    degrees = [float(np.degrees(np.arctan(s))) for s in shear]
    return tv.affine(x, 0.0, list(shift), 1.0, degrees, interpolation=BILINEAR, center=[0, 0])


def test_a_policy_sits_among_other_operations():
    images = pictures(6)
    augment = BatchAugment([Crop(2), RandAugment(2, magnitude=9), Brightness(), GaussianBlur(3)])
    out = augment(images, index=torch.arange(6), epoch=0).images
    assert out.shape == images.shape
    assert not torch.equal(out, images / 255)
