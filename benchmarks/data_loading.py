"""What loading costs: whole batches against torch's sample by sample, and padding by bucket against none.

Run: ``python -m benchmarks.data_loading``
"""

import json
import logging
import random
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import interleaved, report
from lightning_tricks import ImageDataModule, TextDataModule

PICTURES = 8192


def pictures() -> None:
    """One epoch of standardised pictures, in one process."""
    images = torch.randint(256, (PICTURES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(PICTURES) % 10
    rows = {"train": range(PICTURES - 10), "val": range(PICTURES - 10, PICTURES)}
    data = ImageDataModule.from_arrays(images, labels, split=rows, batch_size=128)
    data.setup()
    ours = data.train_dataloader()
    mean, std = (255 * value.view(-1, 1, 1) for value in (data.mean, data.std))
    theirs = DataLoader(TensorDataset(images, labels), batch_size=128, shuffle=True)

    def iterate(loader, scale):
        for x, _ in loader:
            if scale:
                (x.float() - mean) / std

    times = interleaved(
        {
            "ImageDataModule": lambda: iterate(ours, scale=False),
            "torch DataLoader, sample by sample": lambda: iterate(theirs, scale=True),
        }
    )
    report(f"One epoch of {PICTURES} pictures of 3x32x32, standardised", times, base="ImageDataModule")


def padding() -> None:
    """Share of padding in one epoch of texts whose lengths are spread as in reviews (log-normal)."""
    stream = random.Random(0)
    texts = ["w " * max(1, min(512, int(stream.lognormvariate(4.5, 0.8)))) for _ in range(5000)]
    data = TextDataModule(texts, [0, 1] * 2500, batch_size=32, split=(0.8, 0.2))
    data.setup()
    lengths = [data._encoded.lengths[row] for row in data.parts["train"].rows]
    shuffled = torch.tensor(stream.sample(lengths, len(lengths)))
    plain = sum(len(batch) * int(batch.max()) for batch in shuffled.split(32))
    ours = sum(tokens.numel() for tokens, _ in data.train_dataloader())
    real = sum(lengths)
    shares = {"random batches": 1 - real / plain, "by bucket": 1 - real / ours}
    print("\nShare of padding, 4,000 texts, batches of 32")
    for name, share in shares.items():
        print(f"{name:40s} {share:8.3f}")
    print(json.dumps({"benchmark": "padding", **shares}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pictures()
    padding()
