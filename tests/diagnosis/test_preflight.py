"""Preflight: silent about healthy programs, right about one fault in each, and without a trace."""

import copy

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningModule, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tricks import MLP, Classifier, DigitsDataModule, Finding, Preflight, Regressor, Report, check
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import PreflightError
from lightning_tricks.diagnosis._losses import LossCall
from lightning_tricks.diagnosis.rules._data import class_imbalance, input_values, split_overlap
from lightning_tricks.diagnosis.rules._outputs import loss_at_init, output_activation, output_bias, train_eval_mismatch
from lightning_tricks.diagnosis.rules._parameters import vanishing_or_exploding, zero_init


def blobs(count=200, classes=4, features=6):
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(count) % classes
    x = torch.randn(count, features, generator=generator) + F.one_hot(y, features)
    return x, y


class Program(LightningModule):
    """A healthy classifier; each fault is one change to it."""

    def __init__(self, net=None):
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def loss(self, output, y):
        return F.cross_entropy(output, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader(x=None, y=None, batch_size=16, **options):
    data = TensorDataset(*blobs() if x is None else (x, y))
    return DataLoader(data, batch_size, **{"shuffle": True, **options})


def found(model=None, data=None, **options):
    seed_everything(0, verbose=False)
    report = check(Program() if model is None else model, loader() if data is None else data, progress=False, **options)
    return {finding.rule: finding for finding in reversed(report.findings)}  # the gravest of each rule


def serious(findings):
    return [str(finding) for finding in findings.values() if finding.severity != "info"]


class Wrong(Program):
    def __init__(self):
        super().__init__(nn.Linear(7, 4))


class WithoutTrainer(Program):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.trainer.no_such_thing


class Tokens(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.embed, self.encode = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.encode(self.embed(x)).mean(1))


def tokens():
    generator = torch.Generator().manual_seed(1)
    return loader(torch.randint(20, (96, 5), generator=generator), torch.arange(96) % 4)


class Regression(Program):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)))

    def loss(self, output, y):
        return F.mse_loss(output.squeeze(1), y)


class Binary(Regression):
    def loss(self, output, y):
        return F.binary_cross_entropy_with_logits(output.squeeze(1), y)


@pytest.mark.parametrize("budget", ["quick", "full"])
def test_a_step_that_raises_is_an_error_that_says_what(budget):
    finding = found(Wrong(), budget=budget)["step-fails"]
    assert finding.severity == "error"
    assert "mat1 and mat2 shapes cannot be multiplied (16x6 and 7x4)" in finding.what


def test_a_step_that_only_lacks_a_running_trainer_is_a_note():
    (finding,) = (f for f in found(WithoutTrainer()).values() if "could not run" in f.what)
    assert finding.severity == "info"
    assert "no_such_thing" in finding.what


def test_a_step_that_fails_for_a_reason_that_is_known_is_not_said_twice():
    x, y = blobs()
    findings = found(data=loader(x, y + 1))
    assert findings["labels-range"].severity == "error"
    assert "step-fails" not in findings or findings["step-fails"].severity == "info"


HEALTHY = {
    "mlp": lambda: (Program(), loader()),
    "batch norm and dropout": lambda: (Classifier(MLP(6, 4, dropout=0.5), num_classes=4), loader(batch_size=32)),
    "digits": lambda: (Classifier(MLP(64, 10), num_classes=10), DigitsDataModule()),
    "tokens": lambda: (Program(Tokens()), tokens()),
    "regression": lambda: (Regression(), loader(blobs()[0], blobs()[0].sum(1))),
    "our regression": lambda: (Regressor(MLP(6, 1)), loader(blobs()[0], blobs()[0].sum(1, keepdim=True))),
    "binary": lambda: (Binary(), loader(blobs()[0], (blobs()[1] > 1).float())),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("budget", ["quick", "full"])
def test_healthy_programs_raise_no_alarm(name, budget):
    seed_everything(0, verbose=False)
    model, data = HEALTHY[name]()
    findings = found(model, data, budget=budget)
    assert serious(findings) == []
    assert not any("could not run" in finding.what for finding in findings.values())


def changed(**methods):
    return type("Changed", (Program,), methods)()


def no_grad_step(self, batch, batch_idx):
    return F.cross_entropy(self.net[2](self.net[1](self.net[0](batch[0])).detach()), batch[1])


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x.softmax(dim=0) * 16)


class Noisy(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), training=True)


class Blind(nn.Linear):
    def forward(self, x):
        return super().forward(x * 0)


def weights(change):
    program = Program()
    with torch.no_grad():
        change(program.net)
    return program


X, Y = blobs()


def head_only(self):
    return torch.optim.Adam(self.net[2].parameters())


def normed(*before):
    return Program(nn.Sequential(nn.Linear(6, 8), *before, nn.BatchNorm1d(8), nn.Linear(8, 4)))


FAULTS = {
    "params-not-optimized": ("error", lambda: (changed(configure_optimizers=head_only), None)),
    "output-activation": ("error", lambda: (changed(loss=lambda s, o, y: F.cross_entropy(o.softmax(1), y)), None)),
    "symmetric-init": ("error", lambda: (weights(lambda net: net[0].weight.fill_(0.1)), None)),
    "zero-init": ("error", lambda: (weights(lambda net: [net[i].weight.zero_() for i in (0, 2)]), None)),
    "loss-at-init": ("warning", lambda: (weights(lambda net: net[2].weight.mul_(100)), None)),
    "activation-scale": ("warning", lambda: (weights(lambda net: [p.mul_(1e-6) for p in net[0].parameters()]), None)),
    "no-update": ("warning", lambda: (changed(training_step=no_grad_step), None)),
    "batch-mixing": ("error", lambda: (Program(Mixing()), None)),
    "nondeterministic-eval": ("warning", lambda: (Program(Noisy(6, 4)), None)),
    "dropout-before-batchnorm": ("warning", lambda: (normed(nn.Dropout()), None)),
    "batchnorm-batch-of-one": ("error", lambda: (normed(), loader(X[:33], Y[:33]))),
    "input-nonfinite": ("error", lambda: (None, loader(torch.where(X > 2, torch.nan, X), Y))),
    "input-constant": ("error", lambda: (None, loader(X[:1].expand(200, -1), Y))),
    "input-scale": ("warning", lambda: (None, loader(X * 100 + 100, Y))),
    "labels-range": ("error", lambda: (None, loader(X, Y + 1))),
    "class-imbalance": ("warning", lambda: (None, loader(X, (torch.arange(200) % 40 == 0).long()))),
    "unshuffled-training": ("warning", lambda: (None, loader(shuffle=False))),
    "split-overlap": ("error", lambda: (None, [loader(), loader(X[:50], Y[:50], shuffle=False)])),
    "output-bias": ("warning", lambda: (Regression(), loader(X, X.sum(1) + 1000))),
}  # fmt: skip


@pytest.mark.parametrize("rule", FAULTS)
def test_one_fault_is_found_and_named(rule):
    seed_everything(0, verbose=False)
    severity, make = FAULTS[rule]
    findings = found(*make())
    assert rule in findings, findings
    assert findings[rule].severity == severity
    assert findings[rule].cure


def test_wrong_batch_first_mixes_samples():
    class Swapped(Tokens):
        def __init__(self):
            super().__init__(batch_first=False)

    assert found(Program(Swapped()), tokens())["batch-mixing"].severity == "error"
    assert "batch-mixing" not in found(Program(Tokens()), tokens())


def test_what_only_the_full_budget_finds():
    class Still(Program):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-7)

    assert found(Still(), budget="full")["cannot-overfit"].severity == "error"
    assert found(Program(Blind(6, 4)), budget="full")["input-ignored"].severity == "error"


def test_decay_and_seed_are_notes():
    model = changed(configure_optimizers=lambda s: torch.optim.AdamW(s.parameters(), weight_decay=0.1))
    assert found(model)["decay-on-bias-or-norm"].severity == "info"


def test_a_rule_that_crashes_does_not_stop_the_others():
    class Crashing(Program):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("out of paper")

    findings = found(Crashing(), loader(X * 100 + 100, Y))
    assert "input-scale" in findings
    assert any("out of paper" in finding.what for finding in findings.values())


def test_streams_and_manual_optimization_are_told():
    class Stream(IterableDataset):
        def __init__(self):
            self.samples = (sample for sample in TensorDataset(*blobs()))  # read once, and never copied

        def __iter__(self):
            return self.samples

    assert "past the loader" in found(data=DataLoader(Stream(), 8))["left-out"].what
    manual = Program()
    manual.automatic_optimization = False
    assert "manual" in found(manual)["left-out"].what


# Without a trace


def test_check_changes_nothing():
    seed_everything(0, verbose=False)
    model, data = Classifier(MLP(6, 4, dropout=0.5), num_classes=4), loader(generator=torch.Generator().manual_seed(3))
    model.net.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state, own = torch.get_rng_state(), data.generator.get_state()
    check(model, data, budget="full", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(own, data.generator.get_state())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_run_with_preflight_ends_with_the_same_bits(own_generator):
    def run(callbacks):
        seed_everything(0, verbose=False)
        model = Program(MLP(6, 4, dropout=0.5))
        options = {"generator": torch.Generator().manual_seed(3)} if own_generator else {}
        quiet_trainer(callbacks=callbacks, max_epochs=2).fit(model, loader(**options))
        return [*model.state_dict().values(), torch.get_rng_state()]

    for with_, without in zip(run([Preflight(budget="full")]), run([]), strict=True):
        assert torch.equal(with_, without)


# The callback


def test_callback_warns_reports_and_writes_a_page(tmp_path):
    preflight = Preflight(report_path=tmp_path / "preflight.html")
    model = changed(loss=lambda s, o, y: F.cross_entropy(o.softmax(1), y))
    with pytest.warns(UserWarning, match="Preflight: error output-activation"):
        quiet_trainer(callbacks=[preflight]).fit(model, loader())
    assert not preflight.report.ok
    assert "output-activation" in (tmp_path / "preflight.html").read_text()


@pytest.mark.filterwarnings("ignore:Total length of `list`")
def test_callback_looks_at_the_first_of_several_loaders():
    def found_by_callback(*val):
        model = changed(validation_step=lambda self, batch, batch_idx, dataloader_idx=0: None)
        preflight = Preflight()
        trainer = quiet_trainer(max_steps=1, callbacks=[preflight], num_sanity_val_steps=0)
        trainer.fit(model, loader(), list(val))
        return {finding.rule: finding.severity for finding in preflight.report}

    other = loader(X + 100, Y, shuffle=False)
    with pytest.warns(UserWarning, match="Preflight: error split-overlap in val_dataloader"):
        assert found_by_callback(loader(shuffle=False), other)["split-overlap"] == "error"
    assert "split-overlap" not in found_by_callback(other, loader(shuffle=False))
    assert "split-overlap" not in found_by_callback()


def test_callback_can_stop_a_broken_run_before_its_first_step():
    model = changed(loss=lambda s, o, y: F.cross_entropy(o.softmax(1), y))
    before = copy.deepcopy(model.state_dict())
    with (
        pytest.warns(UserWarning, match="output-activation"),
        pytest.raises(PreflightError, match="Preflight found 1 errors"),
    ):
        quiet_trainer(callbacks=[Preflight(on_finding="raise")]).fit(model, loader())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


# Pure rules


def test_loss_at_init_knows_sums_from_means():
    call = LossCall("cross_entropy", torch.zeros(64, 10), torch.arange(64) % 10, is_sum=True)
    (finding,) = loss_at_init(call, call.each_loss().sum().item())
    assert "grows with the batch" in finding.what
    mean = LossCall("cross_entropy", torch.zeros(64, 10), torch.arange(64) % 10)
    assert loss_at_init(mean, 2.3026) == []
    assert loss_at_init(mean, float("nan"))[0].rule == "nonfinite"


def test_losses_that_get_what_they_expect():
    logits, y = torch.randn(8, 5), torch.arange(8) % 5
    assert output_activation(LossCall("cross_entropy", logits, y)) == []
    assert output_activation(LossCall("nll_loss", logits.log_softmax(1), y)) == []
    assert output_activation(LossCall("nll_loss", logits, y))[0].severity == "error"


def test_output_bias_of_rare_classes():
    y = torch.cat([torch.zeros(190), torch.ones(10)]).long()
    wrong = LossCall("cross_entropy", torch.tensor([[0.0, 3.0]]).expand(200, 2), y)
    assert output_bias(wrong)[0].severity == "info"
    assert output_bias(LossCall("cross_entropy", torch.tensor([[3.0, 0.0]]).expand(200, 2), y)) == []


def test_output_bias_leaves_ignored_labels_out():
    y = torch.where(torch.arange(400) % 2 == 0, -100, 0)
    sure = torch.where(y[:, None] == 0, torch.tensor([3.0, 0.0]), torch.tensor([0.0, 30.0]))
    assert output_bias(LossCall("cross_entropy", sure, y)) == []
    steps = LossCall("cross_entropy", -sure.view(100, 4, 2).transpose(1, 2), y.view(100, 4))
    assert output_bias(steps)[0].severity == "info"
    assert output_bias(LossCall("cross_entropy", -sure[:60], y[:60])) == [], "30 labels are too few"


def test_gradients_through_depth():
    gradients = {"first": torch.full((2, 2), 1e-6), "last": torch.ones(2, 2)}
    assert vanishing_or_exploding(gradients)[0].rule == "vanishing-gradient"
    assert vanishing_or_exploding(dict(reversed(gradients.items())))[0].rule == "exploding-gradient"
    assert vanishing_or_exploding({"a": torch.ones(2, 2), "b": torch.ones(2, 2) * 3}) == []
    assert vanishing_or_exploding({"a": torch.tensor([torch.nan])})[0].rule == "nonfinite"


def test_bounds_of_the_data_rules():
    assert [f.rule for f in input_values(torch.zeros(4, 3, dtype=torch.uint8))] == ["input-dtype"]
    assert [f.rule for f in input_values(torch.randn(9, 3).double())] == ["input-dtype"]
    assert input_values(torch.rand(9, 3, 8, 8)) == [], "pictures in [0, 1] are fine"
    assert input_values(torch.randint(5, (9, 3))) == []
    assert class_imbalance(torch.tensor([0, 1, 1])) == [], "three labels say nothing"
    assert split_overlap(torch.rand(9, 2), torch.rand(9, 2)) == []
    assert train_eval_mismatch(1.0, 1.4) == []
    assert train_eval_mismatch(1.0, 4.0)[0].rule == "train-eval-mismatch"
    assert zero_init(weights(lambda net: net[2].weight.zero_()))[0].severity == "info"


def test_report_ranks_counts_and_escapes(tmp_path):
    findings = [Finding("b", s, "<here>", "seen", "Do.") for s in ("info", "error", "warning")]
    report = Report(findings, {"seed": 3})
    assert [finding.severity for finding in report] == ["error", "warning", "info"]
    assert str(report).startswith("1 error, 1 warning, 1 note")
    page = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    assert "<here>" not in page
    assert "&lt;here&gt;" in page


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check(nn.Linear(2, 2), loader()), "check needs a LightningModule, but got Linear"),
        (lambda: check(Program(), 3), "check needs a LightningDataModule, a DataLoader, .* but got int"),
        (lambda: check(Program(), loader(), budget="all"), "budget must be one of full, quick"),
        (lambda: Preflight(on_finding="stop"), "on_finding must be one of raise, warn"),
        (lambda: Finding("rule", "fatal", "", "", ""), "severity must be one of error, info, warning"),
        (lambda: Finding("", "info", "", "", ""), "rule must be a name"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()
