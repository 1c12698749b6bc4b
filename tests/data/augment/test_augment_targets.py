"""Masks, boxes and keypoints follow their picture; MixUp and CutMix blend labels by what was really blended."""

import numpy as np
import pytest
import torch
from augment_helpers import pictures, with_params
from helpers import quiet_trainer
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment import (
    BatchAugment,
    Crop,
    CutMix,
    HorizontalFlip,
    MixUp,
    Perspective,
    RandomResizedCrop,
    Rotate,
    Scale,
    Shear,
    Translate,
    VerticalFlip,
)
from lightning_tricks.data.augment.ops._mix import beta, partners

GEOMETRY = [HorizontalFlip(), VerticalFlip(), Rotate(), Translate(), Scale(), Shear(), Perspective(p=1.0)]


def dots(places, height, width):
    """Return pictures (B, 1, H, W) with a bright dot at each sample's (x, y)."""
    images = torch.zeros(len(places), 1, height, width)
    for image, (x, y) in zip(images, places, strict=True):
        image[0, y, x] = 1
    return images


def centre_of_light(images):
    """Return the centre (B, 2) of brightness as (x, y), in pixel numbers."""
    mass = images.sum((1, 2, 3))
    x = (images.sum((1, 2)) * torch.arange(images.shape[3])).sum(1) / mass
    y = (images.sum((1, 3)) * torch.arange(images.shape[2])).sum(1) / mass
    return torch.stack([x, y], dim=1)


@pytest.mark.parametrize("op", [*GEOMETRY, Crop(3), RandomResizedCrop((24, 36), scale=(0.5, 1))], ids=repr)
def test_a_keypoint_stays_on_its_dot(op):
    places = torch.tensor([[14, 12], [17, 15], [12, 17], [15, 13], [18, 12], [16, 16]])
    images = torch.nn.functional.avg_pool2d(dots(places.tolist(), 29, 31), 5, stride=1, padding=2)
    out = BatchAugment([op], seed=2)(images, index=torch.arange(6), epoch=0, keypoints=places.float()[:, None])
    # A perspective moves the centre of a dot of 5 pixels off the image of its centre.
    off = 0.25 if isinstance(op, Perspective) else 0.12
    torch.testing.assert_close(out.keypoints[:, 0], centre_of_light(out.images), atol=off, rtol=0)


@pytest.mark.parametrize("ops", [[HorizontalFlip(1.0)], [VerticalFlip(1.0)], [Crop(2)]], ids=repr)
def test_whole_pixel_steps_move_points_and_boxes_exactly(ops):
    images = pictures(3, 3, 10, 14)
    points = torch.tensor([[[0.0, 0.0], [13.0, 9.0]]] * 3)
    boxes = torch.tensor([[[1.0, 2.0, 5.0, 8.0]]] * 3)
    out = BatchAugment(ops)(images, index=torch.arange(3), epoch=0, keypoints=points, boxes=boxes)
    ((_, params),) = BatchAugment(ops).plan(torch.arange(3), 0, images.shape).steps
    if isinstance(ops[0], Crop):
        shift = torch.stack([params["left"], params["top"]], 1)[:, None]
        torch.testing.assert_close(out.keypoints, points - shift)
        clean = (boxes - torch.cat([shift, shift], -1)).clamp(min=0)
        torch.testing.assert_close(out.boxes, clean)
        return
    flip = tv.horizontal_flip if isinstance(ops[0], HorizontalFlip) else tv.vertical_flip
    frame = {"canvas_size": (10, 14)}
    expected = flip(tv_tensors.BoundingBoxes(boxes[:, 0], format="XYXY", **frame))
    torch.testing.assert_close(out.boxes[:, 0], expected.as_subclass(torch.Tensor))
    if hasattr(tv_tensors, "KeyPoints"):
        moved = flip(tv_tensors.KeyPoints(points[0], **frame))
        torch.testing.assert_close(out.keypoints[0], moved.as_subclass(torch.Tensor))


def test_a_box_is_the_hull_of_its_moved_corners():
    images = pictures(1, 3, 40, 60)
    boxes = torch.tensor([[[20.0, 10.0, 40.0, 30.0], [-5.0, -5.0, 2.0, 2.0]]])
    out = with_params([(Rotate(), {"angle": 45.0})], images, boxes=boxes).boxes[0]
    half = 10 * 2**0.5  # of a square of 20 pixels around the centre (30, 20), on its corner
    torch.testing.assert_close(out[0], torch.tensor([30 - half, 20 - half, 30 + half, 20 + half]))
    assert (out >= 0).all()
    assert (out[:, 0::2] <= 60).all()
    assert (out[:, 1::2] <= 40).all()


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("op", [*GEOMETRY, Crop(3), RandomResizedCrop(9)], ids=repr)
def test_a_mask_follows_its_picture(op, padding):
    """A picture that is its own mask: where four equal pixels meet, both must agree."""
    blocks = torch.randint(2, (4, 1, 6, 6), generator=torch.Generator().manual_seed(1)).repeat_interleave(5, 2)
    mask = blocks.repeat_interleave(5, 3)
    augment = BatchAugment([op], seed=1, padding=padding)
    out = augment(mask.float(), index=torch.arange(4), epoch=0, masks=mask)
    sure = (out.images < 0.01) | (out.images > 0.99)
    assert sure.float().mean() > 0.5
    assert out.masks.dtype == torch.int64
    border = (
        torch.nn.functional.max_pool2d((~sure).float(), 3, 1, 1) > 0
    )  # half a pixel at edges is nearest's to choose
    assert torch.equal(out.masks[~border], out.images[~border].round().long())


def test_masks_keep_their_classes_dtype_and_axes():
    images = pictures(4, 3, 12, 16)
    classes = torch.tensor([3, 7, 200], dtype=torch.uint8)
    masks = classes[torch.randint(3, (4, 12, 16))]
    augment = BatchAugment([Rotate(40), Translate(0.3)], mask_fill=255)
    out = augment(images, index=torch.arange(4), epoch=0, masks=masks)
    assert out.masks.shape == masks.shape
    assert out.masks.dtype == torch.uint8
    assert set(out.masks.unique().tolist()) == {3, 7, 200, 255}
    planes = augment(images, index=torch.arange(4), epoch=0, masks=masks[:, None].expand(-1, 2, -1, -1))
    assert torch.equal(planes.masks[:, 1], out.masks)


def test_nearest_masks_are_torchvisions():
    from torchvision.transforms import InterpolationMode

    mask = torch.randint(9, (2, 1, 13, 17), generator=torch.Generator().manual_seed(0))
    out = with_params([(Rotate(), {"angle": 29.0})], pictures(2, 3, 13, 17), masks=mask).masks
    expected = tv.affine(mask, 29.0, [0, 0], 1.0, [0, 0], interpolation=InterpolationMode.NEAREST)
    assert (out == expected).float().mean() > 0.995  # a position between two pixels may round either way


def test_targets_are_not_changed_in_place():
    images, points = pictures(2), torch.rand(2, 3, 2) * 10
    boxes, masks = torch.tensor([[[1.0, 1, 5, 5]]] * 2), torch.ones(2, 12, 16, dtype=torch.long)
    kept = [x.clone() for x in (points, boxes, masks)]
    for ops in (GEOMETRY, [HorizontalFlip(1.0)], []):
        out = BatchAugment(ops)(images, index=torch.arange(2), epoch=0, keypoints=points, boxes=boxes, masks=masks)
        out.keypoints.zero_(), out.boxes.zero_(), out.masks.zero_()
        assert all(torch.equal(a, b) for a, b in zip(kept, (points, boxes, masks), strict=True))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_law(alpha):
    from scipy.special import betainc

    u = torch.linspace(0, 0.5, 3001)
    shares = beta(u, alpha)
    np.testing.assert_allclose(betainc(alpha, alpha, shares.double().numpy()), u.numpy(), atol=3e-4)
    torch.testing.assert_close(beta(1 - u, alpha), 1 - shares, atol=1e-5, rtol=0)


def test_partners_make_one_circle_whatever_the_order():
    words = torch.randint(-(2**62), 2**62, (11,), generator=torch.Generator().manual_seed(0))
    partner = partners(words)
    seen, at = [], 0
    for _ in range(11):
        seen.append(at)
        at = int(partner[at])
    assert sorted(seen) == list(range(11))
    order = torch.randperm(11)
    assert torch.equal(order[partners(words[order])], partner[order])
    assert partners(words[:1]).tolist() == [0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_mixup_blends_pictures_and_labels_by_the_same_share(batch):
    images, labels = pictures(batch), torch.arange(batch) % 3
    augment = BatchAugment([MixUp(1.0)], num_classes=3)
    out = augment(images, index=torch.arange(batch), epoch=0, labels=labels)
    params = augment.plan(torch.arange(batch), 0, images.shape).steps[0][1]
    unit, hot = images.float() / 255, torch.eye(3)[labels]
    for i in range(batch):
        w, j = params["weight"][i], params["partner"][i]
        torch.testing.assert_close(out.images[i], w * unit[i] + (1 - w) * unit[j], atol=1e-6, rtol=0)
        torch.testing.assert_close(out.labels[i], w * hot[i] + (1 - w) * hot[j])
    if batch > 1:
        assert params["weight"].unique().numel() == batch, "each sample has its own share"


@pytest.mark.parametrize("normal", [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}], ids=["unit", "normalised"])
def test_cutmix_labels_are_the_area_that_was_pasted(normal):
    # Sample i is flat with brightness i: what is not i came from somebody else.
    batch = 7
    images = torch.arange(batch, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 9, 13) * 30
    augment = BatchAugment([CutMix(1.0)], num_classes=batch, **normal)
    plain = BatchAugment([], **normal)
    index = torch.arange(batch)
    seen = 0
    for epoch in range(5):
        out = augment(images, index=index, epoch=epoch, labels=index)
        own = plain(images, index=index, epoch=epoch).images
        for i in range(batch):
            share = (out.images[i] == own[i]).float().mean()
            assert out.labels[i, i] == pytest.approx(float(share), abs=1e-6)
            assert out.labels[i].sum() == pytest.approx(1)
            seen += 0.05 < share < 0.95
    assert seen > 10


def test_mixing_does_not_depend_on_the_order_of_the_batch():
    images, labels, index = pictures(6), torch.arange(6), torch.arange(6) * 10
    augment = BatchAugment([HorizontalFlip(), MixUp(p=0.5), CutMix(p=0.5)], num_classes=6)
    out = augment(images, index=index, epoch=2, labels=labels)
    order = torch.randperm(6)
    again = augment(images[order], index=index[order], epoch=2, labels=labels[order])
    assert torch.equal(again.images, out.images[order])
    assert torch.equal(again.labels, out.labels[order])


def test_labels_come_back_as_they_are_or_as_shares():
    images, index = pictures(4), torch.arange(4)
    labels = torch.tensor([0, 1, 1, 0])
    assert BatchAugment([Rotate()])(images, index=index, epoch=0, labels=labels).labels is labels
    mixed = BatchAugment([MixUp()], num_classes=2)(images, index=index, epoch=0, labels=labels).labels
    assert mixed.dtype == torch.float32
    assert mixed.shape == (4, 2)
    targets = torch.tensor([1.0, 2, 3, 4])  # regression
    out = BatchAugment([MixUp(1.0)])(images, index=index, epoch=0, labels=targets).labels
    assert out.shape == (4,)
    assert 1 <= out.min() < out.max() <= 4
    assert not BatchAugment([Rotate()]).mixes
    assert BatchAugment([Rotate(), CutMix()]).mixes


def test_cutmix_pastes_masks_too():
    images = torch.arange(5, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) * 40
    masks = torch.arange(5).view(-1, 1, 1).expand(-1, 8, 8)
    out = BatchAugment([CutMix()])(images, index=torch.arange(5), epoch=0, masks=masks)
    assert torch.equal((out.images[:, 0] * 255 / 40).round().long(), out.masks)


@pytest.mark.parametrize(
    ("op", "targets", "message"),
    [
        (MixUp(), {"labels": torch.arange(4)}, "how many classes there are"),
        (MixUp(), {"masks": torch.zeros(4, 12, 16, dtype=torch.long)}, "MixUp cannot blend masks"),
        (CutMix(), {"boxes": torch.zeros(4, 1, 4)}, "cannot blend boxes"),
        (CutMix(), {"keypoints": torch.zeros(4, 1, 2)}, "cannot blend keypoints"),
        (HorizontalFlip(), {"masks": torch.zeros(4, 12, 12, dtype=torch.long)}, "masks must be"),
        (HorizontalFlip(), {"masks": torch.zeros(4, 12, 16)}, "masks must be .* of integers"),
        (HorizontalFlip(), {"keypoints": torch.zeros(3, 1, 2)}, "keypoints must be"),
        (HorizontalFlip(), {"labels": torch.zeros(3)}, "labels must be"),
    ],
)
def test_targets_that_cannot_follow_get_a_sentence(op, targets, message):
    with pytest.raises(UserInputError, match=message):
        BatchAugment([op])(pictures(4), index=torch.arange(4), epoch=0, **targets)


def test_classifier_trains_on_what_mixing_makes():
    images, labels = pictures(20, 3, 8, 8), torch.arange(20) % 4
    data = lt.ImageDataModule.from_arrays(images, labels, batch_size=4, augment=[HorizontalFlip(), MixUp(), CutMix()])
    model = lt.Classifier(lt.ConvNet(3, 4, channels=(4,)), num_classes=4)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, data)
    assert np.isfinite(float(trainer.callback_metrics["train_loss"]))
