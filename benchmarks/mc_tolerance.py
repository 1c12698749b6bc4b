"""What `tolerance` saves: samples per row and CPU time, and how far the means are off where a row stopped early.

    python -m benchmarks.mc_tolerance [--samples 500] [--reference 2000] [--epochs 10]

A net trained on digits predicts clean and rotated ones. "by batch" is what a rule would take that stops a batch only
once all of its rows are sure. Single thread.
"""

import argparse
import json
import time

import torch

import lightning_tricks as lt
from benchmarks.digits_uncertainty import corrupted, train, whole

BATCH = 64


def predicted(net: torch.nn.Module, x: torch.Tensor, **options: object) -> tuple[dict[str, torch.Tensor], float]:
    """Return the summaries of all rows, and the CPU time they took."""
    predictor = lt.MCDropoutPredictor(net, task="multiclass", **options)
    predictor.predict_step(x[:BATCH])  # finds, chooses and checks
    start = time.process_time()
    parts = [predictor.predict_step({"x": part, "index": at}) for part, at in
             zip(x.split(BATCH), torch.arange(len(x)).split(BATCH), strict=True)]  # fmt: skip
    seconds = time.process_time() - start
    return {name: torch.cat([part[name] for part in parts]) for name in ("mean", "n_samples")}, seconds


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, default=500)
    options.add_argument("--reference", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=10)
    given = options.parse_args()
    torch.set_num_threads(1)
    net, data = train(0, given.epochs)
    pictures = corrupted(whole(data.test_dataloader())[0])
    x = torch.cat([pictures["clean"], pictures["rotated by 45°"]])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    truth = predicted(net, x, samples=given.reference, seed=1)[0]["mean"]
    _, full = predicted(net, x, samples=given.samples)
    print(f"{len(x)} digits, at most {given.samples} samples; all samples take {full:.2f} s")
    print(f"{'tolerance':>9s} {'samples':>10s} {'by batch':>9s} {'time':>6s} {'within 2 tol.':>14s} {'3 tol.':>7s}")
    rows = []
    for tolerance in (0.05, 0.02, 0.01):
        out, seconds = predicted(net, x, samples=given.samples, tolerance=tolerance)
        taken = out["n_samples"].float()
        batch = torch.cat([part.max().expand(len(part)) for part in taken.split(BATCH)])
        off = (out["mean"] - truth).abs().amax(1)
        row = {
            "tolerance": tolerance, "samples": taken.mean().item(), "by_batch": batch.mean().item(),
            "time": seconds / full, "within_2": (off < 2 * tolerance).float().mean().item(),
            "within_3": (off < 3 * tolerance).float().mean().item(),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{tolerance:9g} {row['samples']:10.1f} {row['by_batch']:9.1f} {row['time']:6.2f} {row['within_2']:14.3f} "
            f"{row['within_3']:7.3f}"
        )
    print(json.dumps({"benchmark": "tolerance", "samples": given.samples, "reference": given.reference, "rows": rows}))


if __name__ == "__main__":
    main()
