"""Pictures to augment, and operations carried out with parameters that a test chooses."""

import torch

from lightning_tricks.data.augment import BatchAugment, ImageBatch, Plan


def pictures(batch=4, channels=3, height=12, width=16, *, seed=0, bright=True):
    """Smooth random uint8 pictures (and so in range after mild colour changes, if not ``bright``)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    low, high = (0, 255) if bright else (90, 160)
    return (low + smooth * (high - low)).round().to(torch.uint8)


def with_params(ops_and_params, images, **options):
    """Apply operations with given parameters: numbers become one per sample."""
    targets = {name: options.pop(name) for name in ("labels", "masks", "boxes", "keypoints") if name in options}
    normalized = options.pop("normalized", False)
    steps = tuple(
        (op, {k: v if isinstance(v, torch.Tensor) else torch.full((len(images),), v) for k, v in params.items()})
        for op, params in ops_and_params
    )
    augment = BatchAugment([op for op, _ in ops_and_params], **options)
    plan = Plan(steps, tuple(images.shape[1:]), len(images))
    return augment.apply(ImageBatch(images, **targets), plan, normalized=normalized)
