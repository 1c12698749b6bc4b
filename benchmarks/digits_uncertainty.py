"""Handwritten digits with dropout off and on: calibration, ranking of mistakes, detection of rotated and blurred ones.

    python -m benchmarks.digits_uncertainty [--runs 10] [--samples 100] [--pictures FOLDER]

Each run trains one net on its own split (60 % of 1,797 pictures) and compares, on the 20 % for testing, a plain
pass in eval() with the mean of the stochastic passes, and with that of passes whose temperature was fitted on the
other 20 %. Every number is a mean over the runs with its standard error; the
difference is taken run by run.
"""

import argparse
import json
import logging
import math
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, rotate

import lightning_tricks as lt
from lightning_tricks import plots
from lightning_tricks import uncertainty as u

MODES = ("off", "on", "scaled")


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
def every_mode(
    net: torch.nn.Module, x: Tensor, samples: int, scaling: u.TemperatureScaling
) -> dict[str, dict[str, Tensor]]:
    probs = net(x).softmax(1)
    passes = u.mc_forward(net, x, samples=samples, seed=0).softmax(2)
    off = {"mean": probs, "entropy": u.predictive_entropy(probs[None])}
    return {"off": off, "on": summary(passes), "scaled": summary(scaling(passes))}


def summary(passes: Tensor) -> dict[str, Tensor]:
    stream = u.SampleStream("multiclass")
    stream.update(passes)
    return stream.compute()


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
    x, y = whole(data.val_dataloader())
    scaling = u.TemperatureScaling.fit(u.mc_forward(net, x, samples=samples, seed=1).softmax(2), y)
    x, y = whole(data.test_dataloader())
    kinds = corrupted(x)
    answers = {kind: every_mode(net, picture, samples, scaling) for kind, picture in kinds.items()}
    if pictures is not None:
        draw(pictures, net, kinds, answers, y)
    found = {mode: scores({kind: modes[mode] for kind, modes in answers.items()}, y) for mode in MODES}
    found["scaled"]["temperature"] = scaling.temperature
    return found


def whole(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return all pictures and labels of a loader."""
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


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


def spread(values: list[float]) -> list[float]:
    """Return mean and standard error."""
    return [statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))]


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
    heads = [*(f"dropout {mode}" for mode in MODES), "on - off", "scaled - off"]
    print("| |", " | ".join(heads), "|\n|---|" + "---|" * len(heads))
    for name in rows[0]["scaled"]:
        columns = {mode: [row[mode][name] for row in rows if name in row[mode]] for mode in MODES}
        for mode in MODES[1:]:
            columns[f"{mode} - off"] = [b - a for a, b in zip(columns["off"], columns[mode], strict=False)]
        table[name] = {key: spread(values) for key, values in columns.items() if values}
        cells = ["{:.4f} ± {:.4f}".format(*table[name][key]) if values else "" for key, values in columns.items()]
        print(f"| {name} |", " | ".join(cells), "|")
    print(json.dumps({"benchmark": "digits", "runs": args.runs, "samples": args.samples, "table": table}))


if __name__ == "__main__":
    main()
