# ruff: noqa: D102 - the methods of the programs that are measured
"""What watching norms costs, beside other monitors: ``python -m benchmarks.norm_monitor [A B C]``.

Each way of watching trains the same model in its own thread of one process. The threads take turns step by step, so
that all of them see the same machine; what is compared is the CPU time of each thread (its own work only: W&B's
background process is not counted). "one record" is the median step with a record in every step, minus the median step
without a monitor; The cost at the default interval is one record (writing included) divided by the
interval, plus the CPU time that NormMonitor's hooks take in steps that are not measured.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings
from functools import wraps

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import grad_norm
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.timing import fits_in_turns
from lightning_tricks import NormMonitor


def mlp():
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), torch.randn(128, 784), torch.randint(10, (128,))


def resnet():
    from torchvision.models import resnet18

    return resnet18(num_classes=10), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))


class Transformer(nn.Module):
    """Twelve encoder layers over 128 tokens."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.embed = nn.Embedding(1000, 256)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def transformer():
    return Transformer(), torch.randint(1000, (8, 128)), torch.randint(10, (8,))


MODELS = {"A": (mlp, "MLP 784-512-512-10, batch 128"), "B": (resnet, "resnet18, 32x3x32x32")}
MODELS["C"] = (transformer, "transformer, 12 layers, d = 256")
STEPS = {"A": (200, 101, 199), "B": (9, 9, 15), "C": (5, 5, 7)}  # interleaved; first and last of unmeasured ones


class Module(LightningModule):
    """A classifier that may log Lightning's norms."""

    def __init__(self, net, *, log_norms=False):
        super().__init__()
        self.net, self.log_norms = net, log_norms

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def on_before_optimizer_step(self, optimizer):
        if self.log_norms:
            self.log_dict(grad_norm(self, norm_type=2))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Histograms(Callback):
    """The recipe for TensorBoard."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for name, parameter in pl_module.named_parameters():
            trainer.logger.experiment.add_histogram(name, parameter, trainer.global_step)
            trainer.logger.experiment.add_histogram(f"{name}.grad", parameter.grad, trainer.global_step)


def trainer(callbacks, logger, steps, log_every):
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def variants(make, folder):
    """Yield (name, module, callbacks, logger); each records in every step."""
    torch.manual_seed(0)
    net, x, y = make()
    state = net.state_dict()

    def module(**options):
        fresh, _, _ = make()
        fresh.load_state_dict(state)
        return Module(fresh, **options)

    wandb_logger = WandbLogger(save_dir=folder, offline=True)
    watched = module()
    wandb_logger.watch(watched, log="all", log_freq=1)
    yield "no monitor", module(), [], CSVLogger(folder), (x, y)
    yield "NormMonitor(every_n_steps=1)", module(), [NormMonitor(every_n_steps=1)], CSVLogger(folder), (x, y)
    yield "wandb.watch(log='all', log_freq=1)", watched, [], wandb_logger, (x, y)
    yield "log_dict(grad_norm(self, 2))", module(log_norms=True), [], CSVLogger(folder), (x, y)
    yield "TensorBoard histograms", module(), [Histograms()], TensorBoardLogger(folder), (x, y)


def interleaved(make, steps):
    """Return the median CPU seconds of a step, by variant."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        cases = {}
        for name, module, callbacks, logger, batch in variants(make, folder):

            def fit(turn, module=module, callbacks=callbacks, logger=logger, batch=batch):
                data = DataLoader([batch] * (steps + 1), batch_size=None)
                trainer([turn, *callbacks], logger, steps + 1, log_every=1).fit(module, data)

            cases[name] = fit
        members = fits_in_turns(cases)
        wandb.finish()
    return {name: statistics.median(member.times[2:-1]) for name, member in members.items()}


class Timed(NormMonitor):
    """Counts the CPU time of everything that it does while training."""

    def __init__(self):
        super().__init__(plot_every_n_epochs=0)
        self.spent = 0.0
        self.depth_of_calls = 0


def timed(name):
    method = getattr(NormMonitor, name)

    @wraps(method)
    def wrapper(self, *args, **kwargs):
        self.depth_of_calls += 1
        start = time.thread_time()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.depth_of_calls -= 1
            if not self.depth_of_calls:
                self.spent += time.thread_time() - start

    return wrapper


for hook in ("on_before_backward", "on_before_optimizer_step", "on_train_batch_end", "_before_step", "_after_step",
             "_measure_before_update"):  # fmt: skip
    setattr(Timed, hook, timed(hook))


def idle_share(make, first, last):
    """Return the share of CPU time that NormMonitor takes in steps ``first`` to ``last``, none of which it measures."""
    torch.manual_seed(0)
    net, x, y = make()
    monitor = Timed()

    class Start(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == first:
                monitor.spent, self.start = 0.0, time.thread_time()

        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == last:
                self.total, self.spent = time.thread_time() - self.start, monitor.spent

    start = Start()
    with tempfile.TemporaryDirectory() as folder:
        fit = trainer([start, monitor], CSVLogger(folder), last, log_every=50).fit
        fit(Module(net), DataLoader([(x, y)] * last, batch_size=None))
    return start.spent / (start.total - start.spent)


def main(names):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging
    import os

    os.environ["WANDB_SILENT"] = "true"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results = {}
    for name in names:
        make, title = MODELS[name]
        steps, *window = STEPS[name]
        medians = interleaved(make, steps)
        base = medians["no monitor"]
        idle = idle_share(make, *window)
        record = (medians["NormMonitor(every_n_steps=1)"] - base) / base
        share = idle + record / Timed().every_n_steps
        print(f"\n{name}: {title}: {base * 1e3:.1f} ms per step without a monitor")
        for variant, seconds in medians.items():
            extra = seconds - base
            print(f"  {variant:36s} one record {extra * 1e3:8.2f} ms = {extra / base:7.1%} of a step")
        print(f"  NormMonitor(): {share:.2%} of a step at its default interval, of which {idle:.2%} between records")
        results[name] = {
            "step_ms": base * 1e3,
            "record_share": {variant: (seconds - base) / base for variant, seconds in medians.items()},
            "default_share": share,
            "idle_share": idle,
        }
    print(json.dumps({"benchmark": "norm_monitor", "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
