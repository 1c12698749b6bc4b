"""Operation by operation: the same numbers as torchvision's functional form, given the same parameters."""

import math

import pytest
import torch
from augment_helpers import pictures, with_params
from torchvision.transforms.v2 import functional as tv

from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment import (
    AutoContrast,
    BatchAugment,
    Brightness,
    Contrast,
    Crop,
    Equalize,
    Erase,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Hue,
    HueHSV,
    Perspective,
    Posterize,
    RandomResizedCrop,
    Rotate,
    Saturation,
    Scale,
    Sharpness,
    Shear,
    Solarize,
    Translate,
    VerticalFlip,
)


def affine(x, *, angle=0.0, translate=(0.0, 0.0), scale=1.0, shear=(0.0, 0.0)):
    from torchvision.transforms import InterpolationMode

    return tv.affine(x, angle, list(translate), scale, list(shear), interpolation=InterpolationMode.BILINEAR)


@pytest.fixture(params=[(3, 12, 16), (3, 17, 9), (1, 8, 8)], ids=str)
def images(request):
    channels, height, width = request.param
    return pictures(3, channels, height, width)


GEOMETRY = {
    "rotate": (Rotate(), {"angle": 23.0}, lambda x: affine(x, angle=23.0)),
    "translate": (Translate(), {"x": 1.25, "y": -2.5}, lambda x: affine(x, translate=(1.25, -2.5))),
    "shrink": (Scale(), {"factor": 0.7}, lambda x: affine(x, scale=0.7)),
    "grow": (Scale(), {"factor": 1.6}, lambda x: affine(x, scale=1.6)),
    "shear": (Shear(), {"x": 12.0, "y": -20.0}, lambda x: affine(x, shear=(12.0, -20.0))),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_torchvisions(name, images):
    op, params, reference = GEOMETRY[name]
    expected = reference(images.float() / 255)
    torch.testing.assert_close(with_params([(op, params)], images).images, expected, atol=1e-4, rtol=0)


def test_rotation_scale_and_translation_fold_into_one_affine(images):
    # The rotation's and the scale's order does not matter; the shift comes last, as in torchvision's affine.
    steps = [(Scale(), {"factor": 0.9}), (Rotate(), {"angle": -31.0}), (Translate(), {"x": 2.0, "y": 0.75})]
    expected = affine(images.float() / 255, angle=-31.0, scale=0.9, translate=(2.0, 0.75))
    torch.testing.assert_close(with_params(steps, images).images, expected, atol=1e-4, rtol=0)


def test_shear_then_rotation_folds_into_one_affine(images):
    steps = [(Shear(), {"x": 9.0, "y": 5.0}), (Rotate(), {"angle": 17.0})]
    expected = affine(images.float() / 255, angle=17.0, shear=(9.0, 5.0))
    torch.testing.assert_close(with_params(steps, images).images, expected, atol=1e-4, rtol=0)


def test_perspective_is_torchvisions():
    images = pictures(2, 3, 20, 24)
    # torchvision sends the centres of the corner pixels, this library the picture's corners: ask both for the same map.
    corners = [[2.0, 1.5], [21.0, 0.0], [24.0, 18.0], [1.0, 19.0]]
    out = with_params([(Perspective(), {"corners": torch.tensor([corners] * 2)})], images).images
    start = [[0, 0], [24, 0], [24, 20], [0, 20]]
    expected = tv.perspective(images.float() / 255, start, corners)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_flips_are_exact(images):
    unit = images.float() / 255
    for op, reference in ((HorizontalFlip(), tv.horizontal_flip), (VerticalFlip(), tv.vertical_flip)):
        flip = torch.tensor([True, False, True])
        out = with_params([(op, {"on": flip})], images).images
        expected = torch.stack([reference(x) if f else x for x, f in zip(unit, flip, strict=True)])
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("border", "edge"), ("reflection", "symmetric")])
def test_crop_is_pad_and_crop(images, padding, mode):
    height, _width = images.shape[2:]
    padded = tv.pad(images, [3], padding_mode=mode)
    expected = torch.stack(
        [tv.crop(p, t + 3, w + 3, 6, 7) for p, t, w in zip(padded, (-3, 0, height - 3), (2, -3, -1), strict=False)]
    )
    top, left = torch.tensor([-3.0, 0.0, height - 3.0]), torch.tensor([2.0, -3.0, -1.0])
    out = with_params([(Crop(3, size=(6, 7)), {"top": top, "left": left})], images, padding=padding).images
    torch.testing.assert_close(out, expected.float() / 255, atol=1e-6, rtol=0)


def test_whole_pixel_steps_are_bit_exact_and_equal_to_the_warped_ones(images):
    steps = [
        (Crop(2), {"top": torch.tensor([-2.0, 0, 1]), "left": torch.tensor([1.0, 2, -2])}),
        (HorizontalFlip(), {"on": torch.tensor([True, False, True])}),
        (VerticalFlip(), {"on": torch.tensor([True, True, False])}),
    ]
    picked = with_params(steps, images).images * 255
    torch.testing.assert_close(picked, picked.round(), atol=1e-4, rtol=0)
    warped = with_params([*steps, (Rotate(), {"angle": 0.0})], images).images
    torch.testing.assert_close(picked / 255, warped, atol=1e-4, rtol=0)


def test_resized_crop_is_torchvisions_inside():
    images = pictures(1, 3, 20, 30)
    params = {"top": 2.0, "left": 4.0, "height": 15.0, "width": 20.0}
    out = with_params([(RandomResizedCrop((30, 40)), params)], images).images
    expected = tv.resized_crop(images.float() / 255, 2, 4, 15, 20, [30, 40], antialias=False)
    # At the window's edge torchvision repeats the last pixel, while the picture goes on here.
    torch.testing.assert_close(out[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4, rtol=0)


FACTORS = [0.0, 0.4, 1.0, 1.7]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("op", "reference"),
    [
        (Brightness(), tv.adjust_brightness),
        (Contrast(), tv.adjust_contrast),
        (Saturation(), tv.adjust_saturation),
        (Sharpness(), tv.adjust_sharpness),
    ],
    ids=lambda x: type(x).__name__,
)
def test_factors_are_torchvisions(images, op, reference, factor):
    out = with_params([(op, {"factor": factor})], images).images
    torch.testing.assert_close(out, reference(images.float() / 255, factor), atol=1e-4, rtol=0)


def test_colour_folds_like_one_operation_after_the_other():
    images = pictures(3, bright=False)  # far from black and white, where torchvision cuts after each step
    expected = images.float() / 255
    steps = []
    for op, reference, factor in (
        (Saturation(), tv.adjust_saturation, 1.3),
        (Contrast(), tv.adjust_contrast, 0.7),
        (Brightness(), tv.adjust_brightness, 1.2),
        (Contrast(), tv.adjust_contrast, 1.4),
        (Saturation(), tv.adjust_saturation, 0.5),
    ):
        expected = reference(expected, factor)
        steps.append((op, {"factor": factor}))
    torch.testing.assert_close(with_params(steps, images).images, expected, atol=1e-4, rtol=0)


def test_normalising_folds_into_the_colour():
    images, mean, std = pictures(3), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    steps = [(Brightness(), {"factor": 1.9}), (Contrast(), {"factor": 1.5})]
    plain = with_params(steps, images).images  # cut to [0, 1]
    folded = with_params(steps, images, mean=mean, std=std).images
    torch.testing.assert_close(folded, tv.normalize(plain, list(mean), list(std)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.13, 0.0, 0.21, 0.5])
def test_hue_of_hsv_is_torchvisions(images, turn):
    out = with_params([(HueHSV(), {"turn": turn})], images).images
    torch.testing.assert_close(out, tv.adjust_hue(images.float() / 255, turn), atol=1e-4, rtol=0)


def test_hue_of_yiq_turns_the_chroma_and_keeps_the_luma():
    images = pictures(3, bright=False)
    unit = images.float() / 255
    luma = torch.tensor([0.2989, 0.587, 0.114])
    out = with_params([(Hue(), {"turn": 0.07})], images).images
    torch.testing.assert_close(torch.einsum("bchw,c", out, luma), torch.einsum("bchw,c", unit, luma))
    back = with_params([(Hue(), {"turn": 0.2}), (Hue(), {"turn": -0.2})], images).images
    torch.testing.assert_close(back, unit, atol=1e-5, rtol=0)
    grey = torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)
    torch.testing.assert_close(with_params([(Hue(), {"turn": 0.3})], grey).images, grey / 255, atol=1e-3, rtol=0)


def test_greyscale_is_torchvisions(images):
    out = with_params([(Grayscale(), {"factor": 0.0})], images).images
    expected = images.float() / 255
    expected = tv.rgb_to_grayscale(expected, images.shape[1]) if images.shape[1] == 3 else expected
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("op", [Grayscale(), Saturation()])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_grey_leaves_transparency_out_and_alone(op, factor):
    colours, alpha = pictures(channels=3, bright=False), pictures(channels=1)
    out = with_params([(op, {"factor": factor})], torch.cat([colours, alpha], 1)).images
    alone = with_params([(op, {"factor": factor})], colours).images
    torch.testing.assert_close(out, torch.cat([alone, alpha / 255], 1), atol=1e-5, rtol=0)
    grey_and_alpha = torch.cat([alpha, alpha.flip(0)], 1)
    torch.testing.assert_close(with_params([(op, {"factor": factor})], grey_and_alpha).images, grey_and_alpha / 255)


@pytest.mark.parametrize("op", [Hue(), HueHSV()])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_hue_needs_to_know_the_colours(op, channels):
    with pytest.raises(UserInputError, match=rf"needs pictures with 3 channels .*, but got {channels}\. Leave"):
        with_params([(op, {"turn": 0.2})], torch.zeros(2, channels, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_solarize_is_torchvisions(images, threshold):
    out = with_params([(Solarize(), {"threshold": threshold})], images).images
    torch.testing.assert_close(out, tv.solarize(images, threshold * 255) / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_posterize_is_torchvisions(images, bits, as_bytes):
    x = images if as_bytes else images.float() / 255
    expected = tv.posterize(x, bits) / 255 if as_bytes else tv.posterize(x, bits) if bits < 8 else x
    torch.testing.assert_close(
        with_params([(Posterize(), {"bits": float(bits)})], x).images, expected, atol=1e-4, rtol=0
    )


def levels_of_all_kinds():
    """Smooth, dark, flat, two-valued, two-thirds white and noisy pictures."""
    smooth = pictures(6, 3, 20, 24)
    smooth[1] = smooth[1] // 5 + 30
    smooth[2, 0], smooth[2, 1], smooth[2, 2] = 0, 255, 77
    smooth[3] = torch.where(smooth[3] > 100, 101, 100)
    smooth[4, :, :, 8:] = 255
    smooth[5] = torch.randint(256, smooth[5].shape, generator=torch.Generator().manual_seed(0))
    return smooth


@pytest.mark.parametrize(
    ("op", "reference"),
    [(AutoContrast(), tv.autocontrast), (Equalize(), tv.equalize)],
    ids=["autocontrast", "equalize"],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_stretching_and_equalizing_are_torchvisions(op, reference, as_bytes):
    images = levels_of_all_kinds()
    x = images if as_bytes else images.float() / 255
    expected = torch.stack([reference(image) for image in images.float() / 255])  # torchvision cuts bytes to bytes
    torch.testing.assert_close(with_params([(op, {"on": True})], x).images, expected, atol=1e-4, rtol=0)
    half = torch.arange(6) % 2 == 0
    out = with_params([(op, {"on": half})], x).images
    torch.testing.assert_close(out[half], expected[half], atol=1e-4, rtol=0)
    torch.testing.assert_close(out[~half], images[~half].float() / 255, atol=1e-6, rtol=0)


def test_autocontrast_works_on_normalised_pictures():
    images = levels_of_all_kinds()
    out = with_params([(AutoContrast(), {"on": True})], images, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).images
    plain = with_params([(AutoContrast(), {"on": True})], images).images
    torch.testing.assert_close(out, tv.normalize(plain, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), atol=1e-4, rtol=0)


def test_autocontrast_does_not_blow_up_rounding_errors():
    flat = torch.full((1, 3, 8, 8), 0.3) + 1e-7 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_params([(AutoContrast(), {"on": True})], flat).images, flat)


@pytest.mark.parametrize("size", [(20, 24), (3, 5)])
def test_equalized_levels_are_evenly_spread(size):
    images = torch.randint(100, 140, (1, 1, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    out = with_params([(Equalize(), {"on": True})], images).images * 255
    if size == (3, 5):  # fewer than 255 pixels cannot be spread
        torch.testing.assert_close(out, images.float())
    else:
        assert out.min() <= 10
        assert out.max() == 255
        order = images.flatten().argsort()
        assert (out.flatten()[order].diff() >= 0).all()


OPS_THAT_SPARE = {
    "autocontrast": (AutoContrast(), "on", True, False),
    "blur": (GaussianBlur(3), "sigma", 1.0, 1e-3),
    "equalize": (Equalize(), "on", True, False),
    "hue": (HueHSV(), "turn", 0.2, 0.0),
    "posterize": (Posterize(), "bits", 2.0, 8.0),
    "sharpness": (Sharpness(), "factor", 1.9, 1.0),
    "solarize": (Solarize(), "threshold", 0.4, torch.inf),
}


@pytest.mark.parametrize("name", OPS_THAT_SPARE)
def test_the_cpu_computes_none_but_the_samples_that_change(name, monkeypatch):
    op, parameter, changed, neutral = OPS_THAT_SPARE[name]
    images = pictures(5, 3, 20, 24)
    seen = []
    whole = type(op).apply
    monkeypatch.setattr(type(op), "apply", lambda *args: (seen.append(len(args[1])), whole(*args))[1])
    everyone = with_params([(op, {parameter: changed})], images).images
    some = torch.tensor([False, True, True, False, False])
    values = torch.where(some, torch.tensor(changed), torch.tensor(neutral))
    out = with_params([(op, {parameter: values})], images).images
    nobody = with_params([(op, {parameter: neutral})], images).images
    assert seen == [5, 2]
    torch.testing.assert_close(out[some], everyone[some], atol=1e-6, rtol=0)
    assert torch.equal(out[~some], nobody[~some])
    assert torch.equal(nobody, images.float() * torch.tensor(1 / 255))


@pytest.mark.parametrize("sigma", [0.3, 1.7])
def test_blur_is_torchvisions(images, sigma):
    out = with_params([(GaussianBlur(5), {"sigma": sigma})], images).images
    torch.testing.assert_close(out, tv.gaussian_blur(images.float() / 255, [5, 5], [sigma] * 2), atol=1e-4, rtol=0)


def test_no_blur_is_no_change(images):
    out = with_params([(GaussianBlur(5), {"sigma": 1e-3})], images).images
    assert torch.equal(out, images.float() * torch.tensor(1 / 255))


def test_erase_is_torchvisions(images):
    box = torch.tensor([[1, 2, 6, 7], [0, 0, 3, 5], [2, 2, 2, 2]])
    out = with_params([(Erase(value=0.5), {"box": box})], images, mean=0.5, std=0.25).images
    expected = (images.float() / 255 - 0.5) / 0.25
    for x, (left, top, right, bottom) in zip(expected, box.tolist(), strict=True):
        if right > left:
            v = torch.zeros(x.shape[0], bottom - top, right - left)
            x.copy_(tv.erase(x, top, left, bottom - top, right - left, v))
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", ["bank", "exact"])
def test_noise_has_the_law_that_it_names(source):
    from scipy.stats import kstest

    images = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    augment = BatchAugment([GaussianNoise(0.02, source=source)])
    noise = augment(images, index=torch.arange(64), epoch=0).images - 128 / 255
    assert kstest(noise.flatten().numpy() / 0.02, "norm").pvalue > 0.01
    flat = noise.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 5 / math.sqrt(flat.shape[1])
    assert torch.corrcoef(noise.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 5 / math.sqrt(64 * 256)


def test_counted_noise_is_normal_and_a_function_of_the_word():
    from scipy.stats import kstest

    from lightning_tricks.data.augment.ops._noise import _by_counter

    words = torch.arange(100) * 7919 - 350_000
    noise = _by_counter(words, 301)
    assert noise.shape == (100, 301)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.equal(_by_counter(words[40:41], 301)[0], noise[40])
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 5 / math.sqrt(301)


def test_noise_is_cut_to_the_range():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    out = BatchAugment([GaussianNoise(0.5)])(images, index=torch.arange(2), epoch=0).images
    assert out.min() == 0
    assert out.max() == 1
