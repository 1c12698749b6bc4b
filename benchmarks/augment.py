"""How fast is the batch augmentation? One pipeline, several libraries, pictures per second.

    python benchmarks/augment.py [--rounds 7] [--device cpu|cuda]

The pipeline, drawn anew for each sample, bytes in, floats out: horizontal flip 1/2, rotation ±15°, translation ±10 %,
scale 0.9 to 1.1, brightness, contrast and saturation ±0.2, hue ±0.05, Gaussian noise of 0.05. Methods take turns round
by round, and the median over the rounds counts: of the CPU time of one thread, or of synchronised wall time on CUDA.
Peers that are not installed are left out. The last line is JSON.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from lightning_tricks.data.augment import (
    BatchAugment,
    Brightness,
    Contrast,
    GaussianNoise,
    HorizontalFlip,
    Hue,
    HueHSV,
    Rotate,
    Saturation,
    Scale,
    Translate,
)

SIZES = ((256, 32), (64, 224))
OURS = "ours (noise from a bank)"


def ours(images, **options) -> Callable[[], object]:
    hue = HueHSV(0.05) if options.get("hsv") else Hue(0.05)
    augment = BatchAugment(
        [
            HorizontalFlip(),
            Rotate(15),
            Translate(0.1),
            Scale((0.9, 1.1)),
            Brightness(0.2),
            Contrast(0.2),
            Saturation(0.2),
            hue,
            GaussianNoise(0.05, source=options.get("noise", "bank")),
        ]
    )
    index = torch.arange(len(images), device=images.device)
    return lambda: augment(images, index=index, epoch=0)


def torchvision_pipeline() -> v2.Compose:
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
            v2.GaussianNoise(sigma=0.05),
        ]
    )


def torchvision_loop(images) -> Callable[[], object]:
    pipeline = torchvision_pipeline()
    return lambda: torch.stack([pipeline(image) for image in images])


def torchvision_batch(images) -> Callable[[], object]:
    pipeline = torchvision_pipeline()
    return lambda: pipeline(images)


def kornia(images) -> Callable[[], object]:
    import kornia.augmentation as K

    pipeline = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), p=1.0),
        K.ColorJitter(0.2, 0.2, 0.2, 0.05, p=1.0),
        K.RandomGaussianNoise(0.0, 0.05, p=1.0),
    )
    return lambda: pipeline(images.float() / 255)


def albumentations(images) -> Callable[[], object]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    pipeline = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-15, 15), translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), p=1),
            A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.05, 0.05), p=1),
            A.GaussNoise(std_range=(0.05, 0.05), p=1),
        ]
    )
    pictures = list(images.permute(0, 2, 3, 1).contiguous().numpy())

    def run() -> torch.Tensor:
        out = np.stack([pipeline(image=picture)["image"] for picture in pictures])
        return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255)

    return run


def bare_grid_sample(images) -> Callable[[], object]:
    batch, _, size, _ = images.shape
    floats = images.float()
    turn = torch.tensor([[0.96, -0.26, 0.0], [0.26, 0.96, 0.0]], device=images.device).repeat(batch, 1, 1)
    grid = F.affine_grid(turn, [batch, 3, size, size], align_corners=False)
    return lambda: F.grid_sample(floats, grid, align_corners=False)


def bare_normal(images) -> Callable[[], object]:
    noise = torch.empty(images.shape, device=images.device)
    return noise.normal_


def methods(images) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {
        OURS: ours(images),
        "ours (exact noise)": ours(images, noise="exact"),
        "ours (bank, hue of HSV)": ours(images, hsv=True),
        "torchvision, sample by sample": torchvision_loop(images),
        "torchvision, one draw per batch": torchvision_batch(images),
        "bare grid_sample": bare_grid_sample(images),
        "bare normal_": bare_normal(images),
    }
    if find_spec("kornia"):
        found["kornia"] = kornia(images)
    if find_spec("albumentations") and images.device.type == "cpu":
        found["albumentations, sample by sample"] = albumentations(images)
    return found


def measure(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of each run; the runs take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if round_number:  # the first one warms up
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report: dict[str, object] = {"benchmark": "augment", "device": args.device, "rounds": args.rounds}
    for batch, size in SIZES:
        torch.manual_seed(0)
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=args.device)
        seconds = measure(methods(images), args.rounds, args.device)
        print(f"\n{batch} x 3 x {size} x {size}, {args.device}: {'pictures/s':>29} {'times ours':>11}")
        for name, value in sorted(seconds.items(), key=lambda item: item[1]):
            print(f"  {name:40} {batch / value:12,.0f} {value / seconds[OURS]:11.2f}")
        report[f"{batch}x{size}"] = {name: round(batch / value, 1) for name, value in seconds.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
