"""Handwritten digits with dropout off and on: calibration, ranking of mistakes, detection of rotated and blurred ones.

    python -m benchmarks.digits_uncertainty [--runs 10] [--samples 100] [--pictures FOLDER]

Each run trains one net on its own split (60 % of 1,797 pictures) and compares, on the 20 % for testing, a plain
pass in eval() with the mean of the stochastic passes. Every number is a mean over the runs with its standard error; the
difference is taken run by run.
"""

import argparse
import json
import logging
import math
import statistics
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, rotate

import lightning_tricks as lt
from lightning_tricks import plots
from lightning_tricks import uncertainty as u


def train(seed: int, epochs: int) -> tuple[torch.nn.Module, lt.DigitsDataModule]:
    L.seed_everything(seed, verbose=False)
    data = lt.DigitsDataModule(batch_size=64, seed=seed)
    net = lt.MLP(64, 10, hidden_features=(256, 256), norm="none", dropout=0.5)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(lt.Classifier(net, 10, optimizer="adam", lr=1e-3), data)
    return net.eval(), data


def corrupted(x: Tensor) -> dict[str, Tensor]:
    """Return the test pictures and their damaged twins; ink that leaves the frame is replaced by paper."""
    paper = x.min().item()
    return {
        "clean": x,
        "rotated by 45°": rotate(x, 45.0, fill=[paper]),
        "rotated by 90°": rotate(x, 90.0, fill=[paper]),
        "blurred": gaussian_blur(x, 5, sigma=1.5),
    }


@torch.no_grad()
def off_and_on(net: torch.nn.Module, x: Tensor, samples: int) -> dict[str, dict[str, Tensor]]:
    probs = net(x).softmax(1)
    stream = u.SampleStream("multiclass")
    stream.update(u.mc_forward(net, x, samples=samples, seed=0).softmax(2))
    off = {"mean": probs, "entropy": u.predictive_entropy(probs[None])}
    return {"off": off, "on": stream.compute()}


def scores(answers: dict[str, dict[str, Tensor]], y: Tensor) -> dict[str, float]:
    """Return the measures of one mode, by name; ``answers`` holds one summary per kind of picture."""
    clean = answers["clean"]
    probs, label = clean["mean"].max(1)
    correct = label == y
    row = {
        "accuracy": correct.double().mean().item(),
        "calibration error": u.expected_calibration_error(probs, correct),
        "adaptive calibration error": u.expected_calibration_error(probs, correct, binning="count"),
        "negative log-likelihood (nats)": u.NegativeLogLikelihood()(clean["mean"], y).item(),
        "Brier score": u.BrierScore()(clean["mean"], y).item(),
        "AURC x 1000": 1000 * u.aurc(probs, ~correct).item(),
        "AUGRC x 1000": 1000 * u.augrc(probs, ~correct).item(),
    }
    for measure in ("entropy", "mutual_info"):
        if measure in clean:
            row[f"AUROC of {measure}: mistakes"] = u.uncertainty_auroc(clean[measure], ~correct).item()
            for kind in answers:
                if kind != "clean":
                    both = torch.cat([clean[measure], answers[kind][measure]])
                    row[f"AUROC of {measure}: {kind}"] = u.uncertainty_auroc(
                        both, torch.arange(len(both)) >= len(y)
                    ).item()
    # Damaged pictures keep their label: are the probabilities honest where the net is out of its depth?
    for kind, summary in answers.items():
        if kind != "clean":
            top, guess = summary["mean"].max(1)
            row[f"calibration error: {kind}"] = u.expected_calibration_error(top, guess == y)
    return row


def run(seed: int, epochs: int, samples: int, pictures: Path | None) -> dict[str, dict[str, float]]:
    net, data = train(seed, epochs)
    x, y = (torch.cat(column) for column in zip(*data.test_dataloader(), strict=True))
    kinds = corrupted(x)
    answers = {kind: off_and_on(net, picture, samples) for kind, picture in kinds.items()}
    if pictures is not None:
        draw(pictures, net, kinds, answers, y)
    return {mode: scores({kind: both[mode] for kind, both in answers.items()}, y) for mode in ("off", "on")}


def draw(folder: Path, net: torch.nn.Module, kinds: dict[str, Tensor], answers: dict, y: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    blurred = {mode: answers["blurred"][mode]["mean"].max(1) for mode in ("off", "on")}
    clean = answers["clean"]["on"]
    correct = clean["label"] == y
    error = {mode: answers["blurred"][mode]["mean"].argmax(1) != y for mode in ("off", "on")}
    with torch.no_grad():
        passes = u.mc_forward(net, kinds["clean"], samples=300, seed=0).softmax(2)[..., 3]
    figures = {
        "reliability": plots.reliability_diagram(
            *(u.calibration_bins(top, label == y) for top, label in blurred.values()),
            labels=[f"blurred digits, dropout {mode}" for mode in blurred],
        ),
        "risk_coverage": plots.risk_coverage_curve(
            {f"dropout {mode}": u.risk_coverage(top, error[mode]) for mode, (top, _) in blurred.items()},
            optimal=u.risk_coverage(-error["on"].float(), error["on"]),
        ),
        "histogram": plots.uncertainty_histogram(
            {
                "right": clean["entropy"][correct],
                "wrong": clean["entropy"][~correct],
                "rotated by 90°": answers["rotated by 90°"]["on"]["entropy"],
            },
            name="predictive entropy (nats)",
        ),
        "convergence": plots.convergence_plot(passes, name="probability of a 3", tolerance=0.02),
        "most_uncertain": plots.most_uncertain_pictures(
            kinds["clean"], clean["mutual_info"], labels=y, predictions=clean["label"], name="mutual information (nats)"
        ),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"digits_{name}.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the first run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    rows = [run(seed, args.epochs, args.samples, None if seed else args.pictures) for seed in range(args.runs)]
    table: dict[str, dict[str, list[float]]] = {}
    print(f"{'':36s} {'dropout off':>17s} {'dropout on':>17s} {'difference':>17s}")
    for name in rows[0]["on"]:
        columns = {mode: [row[mode][name] for row in rows if name in row[mode]] for mode in ("off", "on")}
        columns["difference"] = [on - off for off, on in zip(columns["off"], columns["on"], strict=False)]
        table[name] = {
            key: [statistics.fmean(v), statistics.stdev(v) / math.sqrt(len(v))] for key, v in columns.items() if v
        }
        cells = [
            f"{table[name][key][0]:8.4f} ± {table[name][key][1]:.4f}" if v else f"{'':17s}"
            for key, v in columns.items()
        ]
        print(f"{name:36s} ", *cells)
    print(json.dumps({"benchmark": "digits", "runs": args.runs, "samples": args.samples, "table": table}))


if __name__ == "__main__":
    main()
