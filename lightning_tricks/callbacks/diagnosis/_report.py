"""The page that a diagnosis writes."""

import os
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_tricks._version import __version__
from lightning_tricks.callbacks.activations._activation_monitor import ActivationMonitor
from lightning_tricks.callbacks.norms._files import run_folder
from lightning_tricks.callbacks.norms._norm_monitor import NormMonitor
from lightning_tricks.diagnosis import LossCurve, Picture, Report, Section, Text, write_atomically

Curves = tuple[LossCurve, Sequence[tuple[int, float]], str, float | None]
Facts = dict[str, str | int | float]


def free_path(trainer: Trainer, report: str | Path | None) -> Path | None:
    """Return where the report goes, or None for nowhere; the folder is made."""
    if report is None or not trainer.is_global_zero:
        return None
    if report != "auto":
        path = Path(report)
    else:
        folder = run_folder(trainer.logger)
        if folder is None:
            return None
        names = (folder / f"report{f'-{i}' if i else ''}.html" for i in range(1000))
        path = next(name for name in names if not name.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def facts_of(trainer: Trainer, module: LightningModule) -> Facts:
    """Return what a reader needs to repeat the run: settings, sizes, seed, versions."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    facts: dict[str, Any] = {
        "model": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "trained parameters": trained,
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
        "learning rate": ", ".join(dict.fromkeys(_rate(group) for group in groups)),
        "weight decay": ", ".join(dict.fromkeys(f"{group.get('weight_decay', 0):.4g}" for group in groups)),
        "epochs planned": trainer.max_epochs,
        "steps planned": trainer.max_steps if trainer.max_steps > 0 else None,
        "batches per epoch": trainer.num_training_batches,
        "accumulated batches": trainer.accumulate_grad_batches,
        "clipping": trainer.gradient_clip_val,
        "precision": trainer.precision,
        "processes": trainer.world_size,
        "device": str(trainer.strategy.root_device),
        "seed": os.environ.get("PL_GLOBAL_SEED", f"none set; torch began with {torch.initial_seed()}"),
        "lightning-tricks": __version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    owners = (getattr(trainer, "datamodule", None), module)
    hparams = {f"hparams: {name}": value for owner in owners for name, value in _hparams(owner).items()}
    return {name: _plain(value) for name, value in {**facts, **hparams}.items() if value is not None}


def _hparams(owner: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(owner, "hparams", None) or {}
    return found


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)[:500]


def write_report(
    path: Path,
    report: Report,
    curves: Curves,
    norms: NormMonitor,
    activations: ActivationMonitor,
    exception: BaseException | None = None,
) -> None:
    """Write the page."""
    ended = [] if exception is None else [_ending(exception)]
    sections = [*ended, *_pictures(report, curves, norms, activations)]
    write_atomically(path, report.to_html(sections=sections))


def _ending(exception: BaseException) -> Section:
    if isinstance(exception, KeyboardInterrupt):
        return Section("How it ended", [Text("The run was interrupted from outside.")])
    last = "".join(traceback.format_exception_only(exception)).strip()[:2000]
    frames = traceback.extract_tb(exception.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})" for frame in frames)
    return Section("How it ended", [Text(f"The run crashed: {last}{where}")])


def _pictures(report: Report, curves: Curves, norms: NormMonitor, activations: ActivationMonitor) -> list[Section]:
    from lightning_tricks import plots

    curve, validation, monitor, guess = curves
    marks = [(f.step, f.rule) for f in report.findings if f.step is not None and f.severity != "info"]
    blocks: list[tuple[str, Callable[[], Any], str]] = []
    if curve.steps:
        draw = partial(
            plots.training_curve, *curve.points(), validation=validation, name=monitor, guess=guess, marks=marks
        )
        blocks.append(("Loss", draw, "Training loss of the first steps and of windows of steps after them."))
    if len(norms._history):
        heat = "Layers in forward order from top to bottom; columns are measured steps."
        blocks.append(("Gradients", lambda: norms.plot("gradients"), heat))
        blocks.append(("Updates", lambda: norms.plot("updates"), "White is an update of a thousandth of the weights."))
        blocks.append(("Weights", lambda: norms.plot("weights"), "Change of each layer's weight norm since the start."))
    if activations._rows:
        blocks.append(("Activations", activations.plot, "What flows through the layers on sampled batches."))
    return [_section(*block) for block in blocks]


def _section(title: str, draw: Callable[[], Any], caption: str) -> Section:
    try:
        return Section(title, [Picture(draw(), caption)])
    except Exception as error:  # a picture of a broken run may fail; the findings must still be read
        return Section(title, [Text(f"This picture could not be drawn: {type(error).__name__}: {error}")])


def _rate(group: dict[str, Any]) -> str:
    return "found by the optimizer" if group.get("lr") is None else f"{float(group['lr']):.4g}"
