"""Diagnosis in real fits: silent about the healthy one, right about one fault in each, and a page at the end."""

import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import Diagnosis, NormMonitor, plots
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.diagnosis import _diagnosis
from lightning_tricks.callbacks.diagnosis._losses import noise_ratio
from lightning_tricks.diagnosis import Thresholds

QUICK = Thresholds(window=10, min_steps=40)  # the same rules on runs of 80 steps


def data(count=320, classes=4, seed=0, batch=32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    rule = torch.randn(6, classes, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(x, (x @ rule).argmax(1)), batch, shuffle=True)


class Program(LightningModule):
    """A healthy classifier; each fault is one change to it."""

    def __init__(self, net=None, lr=0.01, poison=None):
        super().__init__()
        self.save_hyperparameters("lr", "poison")
        self.net = net or nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        out = self.net(batch[0])
        if self.global_step == self.hparams.poison:
            out = out / 0
        return F.cross_entropy(out, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def fit(module=None, diagnosis=None, *, train=None, val=None, seed=1, **options):
    torch.manual_seed(seed)
    module = Program() if module is None else module
    diagnosis = diagnosis or Diagnosis(thresholds=QUICK)
    trainer = quiet_trainer(**{"callbacks": [diagnosis], "max_epochs": 8, **options})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, train or data(), val)
        finally:
            diagnosis.said = [str(w.message) for w in said if str(w.message).startswith("Diagnosis")]
    return diagnosis, trainer, module


def rules(diagnosis):
    return {finding.rule: finding for finding in diagnosis.findings}


def test_a_healthy_run_ends_without_a_word():
    diagnosis, trainer, _ = fit(val=data(seed=1))
    assert diagnosis.findings == ()
    assert diagnosis.said == []
    assert trainer.global_step == 80


def deep(activation, *, depth=8, scale=None):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
    net = nn.Sequential(nn.Linear(6, 16), activation(), *layers, nn.Linear(16, 4))
    if scale is not None:
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(scale)
    return net


def dead():
    net = deep(nn.ReLU, depth=1)
    nn.init.constant_(net[2].bias, -100.0)
    return net


FAULTS = {
    "lr-too-low": lambda: Program(lr=1e-8),
    "lr-too-high": lambda: Program(lr=3.0),
    "vanishing-gradient": lambda: Program(deep(nn.Sigmoid), lr=1e-4),
    "dead-units": lambda: Program(dead(), lr=1e-3),
    "saturated-units": lambda: Program(deep(nn.Tanh, depth=3, scale=40), lr=1e-5),
    "not-learning": lambda: Program(lr=0.0),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_one_fault_is_found_and_named_once(rule):
    diagnosis, trainer, _ = fit(FAULTS[rule]())
    found = rules(diagnosis)
    assert rule in found, diagnosis.findings
    assert found[rule].severity == "error"
    assert found[rule].cure
    assert found[rule].step <= trainer.global_step
    assert len([text for text in diagnosis.said if f" {rule} " in text]) == 1


def test_the_first_nan_is_named_with_its_layer_and_step_at_once():
    diagnosis, _, _ = fit(Program(poison=33))
    finding = rules(diagnosis)["nonfinite"]
    assert finding.step == 34, "right after the step numbered 33"
    assert "step 33" in finding.what
    assert finding.where == "(loss)"


def test_overfitting_by_the_validation_loss():
    few = data(32, batch=8)
    few.dataset.tensors[1].copy_(torch.randint(4, (32,), generator=torch.Generator().manual_seed(2)))
    diagnosis, _, _ = fit(train=few, val=data(64, seed=1), max_epochs=40)
    assert rules(diagnosis)["overfitting"].where == "val_loss"


def test_clipping_that_binds_in_every_step():
    class Plain(Program):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    diagnosis, _, _ = fit(Plain(), gradient_clip_val=1e-3, diagnosis=Diagnosis(every_n_steps=10, thresholds=QUICK))
    assert rules(diagnosis)["clipping-binds"].severity == "warning"


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}], ids=str)
def test_the_loss_is_the_one_of_the_whole_step(options):
    diagnosis, trainer, _ = fit(Program(lr=0.0), **options)
    assert diagnosis._curve.steps == trainer.global_step
    assert diagnosis._curve.level == pytest.approx(math.log(4), abs=0.3)
    assert diagnosis._losses.guess.value() == pytest.approx(1.30, abs=0.06)


def test_manual_optimization_is_watched_too():
    class Manual(Program):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    assert rules(fit(Manual(lr=0.0))[0])["not-learning"].severity == "error"


def test_steps_without_a_loss_are_left_out():
    class Skipping(Program):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    class ByHand(Program):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                return
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    for kind in (Skipping, ByHand):
        assert fit(kind(), max_epochs=2)[0]._curve.steps == 10


def test_a_compiled_module_is_judged_by_its_losses_and_gradients():
    diagnosis, _, _ = fit(torch.compile(Program(lr=0.0), backend="eager"), max_epochs=5)
    assert rules(diagnosis)["not-learning"].step == 50
    assert diagnosis._norms.table()["step"]
    assert not diagnosis._activations.table()["step"]


def test_where_gradients_cannot_be_seen_losses_and_activations_are_judged(monkeypatch, tmp_path):
    monkeypatch.setattr(_diagnosis, "FSDPStrategy", SingleDeviceStrategy)
    logger = CSVLogger(tmp_path, name="run", version=0)
    diagnosis, _, _ = fit(Program(dead(), lr=1e-3), logger=logger)
    assert diagnosis.said[0].startswith("Diagnosis cannot see gradients under SingleDeviceStrategy, so it goes by")
    assert rules(diagnosis)["dead-units"].where == "net.3"
    assert (tmp_path / "run" / "version_0" / "report.html").read_text().count("<img") == 2, "loss and activations"


# What to do about a finding


def test_it_may_stop_the_run():
    diagnosis, trainer, _ = fit(Program(lr=0.0), Diagnosis(on_finding="stop", thresholds=QUICK))
    assert trainer.global_step == rules(diagnosis)["not-learning"].step == 50
    told = []
    diagnosis = Diagnosis(on_finding=lambda finding: told.append(finding.rule), thresholds=QUICK)
    _, trainer, _ = fit(Program(lr=0.0), diagnosis)
    assert trainer.global_step == 80, "None goes on"
    assert "not-learning" in told


def test_a_second_fit_starts_fresh():
    diagnosis, _, _ = fit(Program(lr=0.0))
    assert diagnosis.findings
    diagnosis, _, _ = fit(diagnosis=diagnosis)
    assert diagnosis.findings == ()


def rank_fit(rank):
    diagnosis = Diagnosis(on_finding=lambda finding: finding.rule == "not-learning", thresholds=QUICK)
    diagnosis, trainer, _ = fit(Program(lr=0.0), diagnosis, max_epochs=12, strategy="ddp", devices=2)
    return trainer.global_step, [str(finding) for finding in diagnosis.findings], len(diagnosis.said)


def test_ranks_find_and_stop_together():
    (steps, found, said), (other_steps, other_found, other_said) = run_ranks(rank_fit)
    assert steps == other_steps == 50, "stopped before the end"
    assert found == other_found
    assert (said > 0, other_said) == (True, 0), "the first one speaks"


def test_a_resumed_run_goes_on_with_what_was_seen(tmp_path):
    _, trainer, _ = fit(Program(lr=0.0), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    torch.manual_seed(1)
    again = Diagnosis(thresholds=QUICK)
    resumed = quiet_trainer(callbacks=[again], max_epochs=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed.fit(Program(lr=0.0), data(), ckpt_path=tmp_path / "half.ckpt")
    assert again._curve.steps == resumed.global_step == 80
    assert rules(again)["not-learning"].step == 50


# The page


def test_the_page_says_what_was_found_and_how_the_run_was_made(tmp_path):
    diagnosis, _, _ = fit(Program(lr=0.0), val=data(64, seed=1), logger=CSVLogger(tmp_path, name="run", version=0))
    folder = tmp_path / "run" / "version_0"
    page = (folder / "report.html").read_text()
    for finding in diagnosis.findings:
        assert finding.rule in page
    assert page.count("<img") == 5, "loss, gradients, updates, weights, activations"
    for fact in ("hparams: lr", "Adam", "seed", "torch", "lightning-tricks"):
        assert fact in page
    assert not re.search(r'(src|href)="http', page), "it needs nothing but itself"
    assert "could not be drawn" not in page
    assert "not-learning" in (folder / "alerts.txt").read_text()


class Crashing(Program):
    def __init__(self, error, at=0):
        super().__init__()
        self.error, self.at = error, at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


def test_a_crash_leaves_a_page_with_what_was_seen(tmp_path):
    diagnosis = Diagnosis(report_path=tmp_path / "deep" / "page.html", thresholds=QUICK)
    with pytest.raises(RuntimeError, match="out of <paper>"):
        fit(Crashing(RuntimeError("out of <paper>"), at=30), diagnosis)
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "The run crashed: RuntimeError: out of &lt;paper&gt;" in page
    assert "in training_step" in page
    assert page.count("<img") == 5
    assert diagnosis._curve.steps == 30


def test_a_report_that_fails_hides_neither_the_findings_nor_the_crash(monkeypatch, tmp_path):
    def broken(*args, **options):
        raise ValueError("no <font>")

    monkeypatch.setattr(plots, "training_curve", broken)
    for monitor in (_diagnosis.QuietNorms, _diagnosis.QuietActivations):
        monkeypatch.setattr(monitor, "plot", lambda *args: plots.new_figure()[0])  # drawn quickly
    with pytest.raises(RuntimeError, match="out of paper"):
        fit(Crashing(RuntimeError("out of paper"), at=3), Diagnosis(report_path=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "This picture could not be drawn: ValueError: no &lt;font&gt;" in page
    assert "The run crashed: RuntimeError: out of paper" in page
    monkeypatch.setattr(_diagnosis, "write_report", broken)
    diagnosis = Diagnosis(report_path=tmp_path / "page.html")
    with pytest.raises(RuntimeError, match="out of paper"):
        fit(Crashing(RuntimeError("out of paper"), at=3), diagnosis)
    assert diagnosis.said == ["Diagnosis could not finish its report: ValueError: no <font>"]


def test_only_the_first_process_writes_about_a_crash(tmp_path):
    diagnosis = Diagnosis(report_path=tmp_path / "page.html")
    diagnosis._path = tmp_path / "page.html"
    second = SimpleNamespace(state=SimpleNamespace(fn="fit"), is_global_zero=False)
    diagnosis.on_exception(second, Program(), RuntimeError("at once"))
    assert diagnosis._path is None, "the run is over for it"
    assert not (tmp_path / "page.html").exists()


def test_what_comes_after_the_fit_is_not_judged():
    diagnosis, trainer, module = fit(Program(lr=0.0), val=data(64, seed=1))
    before, later = str(diagnosis.state_dict()), DataLoader(data(64, seed=1).dataset, 32)
    trainer.validate(module, later, verbose=False)
    module.validation_step = lambda batch, batch_idx: (_ for _ in ()).throw(RuntimeError("later"))
    with pytest.raises(RuntimeError, match="later"):
        trainer.validate(module, later, verbose=False)
    assert str(diagnosis.state_dict()) == before
    assert "not-learning" in rules(diagnosis)


def test_a_crash_in_the_first_step_and_an_interruption_leave_pages_beside_each_other(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    for error in (RuntimeError("at once"), KeyboardInterrupt()):
        with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
            fit(Crashing(error), logger=logger)
    folder = tmp_path / "run" / "version_0"
    assert "at once" in (folder / "report.html").read_text()
    assert "interrupted" in (folder / "report-1.html").read_text()


def test_nothing_is_written_without_a_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(max_epochs=1)
    assert list(tmp_path.iterdir()) == []


# Beside others


def test_beside_a_norm_monitor_neither_measures_more_for_the_other():
    monitor, seen = NormMonitor(every_n_steps=1), []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            seen.append(monitor._clipping)

    fit(callbacks=[Diagnosis(), monitor, Look()], max_epochs=1)
    assert seen == [False] * 10


def test_no_hook_and_no_mode_stays_behind():
    _, _, module = fit(max_epochs=1)
    assert not any(m._forward_hooks for m in module.modules())
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be in"),
        ({"on_finding": "halt"}, "on_finding must be one of stop, warn"),
        ({"thresholds": {"dead": 0.9}}, "thresholds must be a Thresholds"),
    ],
)
def test_bad_input_gets_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        Diagnosis(**options)


def test_thresholds_are_the_users():
    patient = Thresholds(window=10, min_steps=1000)
    assert fit(Program(lr=0.0), Diagnosis(thresholds=patient))[0].findings == ()


def test_the_noise_of_the_gradient_from_adams_averages():
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(400))
    optimizer = torch.optim.Adam([parameter], lr=0.0, betas=(0.9, 0.99))
    for _ in range(500):
        parameter.grad = 0.5 + torch.randn(400, generator=generator)  # variance 1, squared mean 0.25 per value
        optimizer.step()
    assert noise_ratio([optimizer]) == pytest.approx(4.0, rel=0.2)
    assert noise_ratio([torch.optim.SGD([parameter], lr=0.1)]) is None
