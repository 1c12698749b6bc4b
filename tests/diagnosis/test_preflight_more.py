"""Preflight on what the fault benchmark brought up: healthy programs that were accused, faults that were missed."""

import copy

import pytest
import torch
from lightning.pytorch import LightningDataModule
from test_preflight import (
    Binary,
    Program,
    Regression,
    Tokens,
    X,
    Y,
    blobs,
    changed,
    found,
    loader,
    serious,
    tokens,
    weights,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from lightning_tricks import MLP, Classifier, check
from lightning_tricks.diagnosis._losses import LossCall
from lightning_tricks.diagnosis._overfit_test import fit_score
from lightning_tricks.diagnosis._probe import first_and_last
from lightning_tricks.diagnosis.rules._data import (
    binary_labels_range,
    class_imbalance,
    first_rows,
    input_values,
    labels_range,
    sample_input,
    split_overlap,
    unseeded,
    unshuffled_training,
)
from lightning_tricks.diagnosis.rules._layers import LayerCall, idle_units, slow_statistics, trace_layers
from lightning_tricks.diagnosis.rules._outputs import (
    bounded_outputs,
    broadcast_loss,
    loss_at_init,
    negated_loss,
    output_activation,
)
from lightning_tricks.diagnosis.rules._parameters import (
    clipping_binds,
    frozen_at_random,
    no_update,
    params_not_optimized,
    weights_too_small,
)

# Healthy, and accused once


def warm_up(self):
    optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50))]


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        nn.init.zeros_(self.inner[2].weight)

    def forward(self, x):
        return x + self.inner(x)


def converged():
    program = Program()
    optimizer = torch.optim.Adam(program.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(program.net(X), Y).backward()
        optimizer.step()
    return program


class ByHand(Program):
    def loss(self, output, y):
        return (torch.logsumexp(output, 1) - output.gather(1, y[:, None]).squeeze(1)).mean()


class Classes(nn.Module):
    def forward(self, x):
        return x.argmax(1)


class Counting(ByHand):
    """What its last module returns are class numbers, which no loss is computed from."""

    def __init__(self):
        super().__init__()
        self.classes = Classes()

    def loss(self, output, y):
        self.log("accuracy", (self.classes(output) == y).float().mean())
        return super().loss(output, y)


class Coder(Program):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6)))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch), batch)


class Bare(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index]


class FromDict(Program):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch["x"]), batch["y"])


class Dicts(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index]}


def sgd(self):
    return torch.optim.SGD(self.parameters(), lr=0.05)


def slowly(self):
    return torch.optim.SGD(self.parameters(), lr=1.5e-3)


class BeforeNorm(Program):
    """A bias before a batch norm has a gradient of rounding errors, which SGD cannot add to it."""

    configure_optimizers = sgd

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)))
        nn.init.constant_(self.net[0].bias, 1.0)


HEALTHY = {
    "warm-up from 0": lambda: (changed(configure_optimizers=warm_up), loader()),
    "branch that begins at 0": lambda: (Program(nn.Sequential(Branch(), nn.Linear(6, 4))), loader()),
    "converged": lambda: (converged(), loader()),
    "loss by hand": lambda: (ByHand(), loader()),
    "class numbers beside": lambda: (Counting(), loader()),
    "inputs alone": lambda: (Coder(), DataLoader(Bare(), 16, shuffle=True)),
    "slow, but it learns": lambda: (changed(configure_optimizers=slowly), loader()),
    "dicts": lambda: (FromDict(), DataLoader(Dicts(), 16, shuffle=True)),
    "bias before batch norm": lambda: (BeforeNorm(), loader(X[:192], Y[:192], batch_size=32)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_programs_raise_no_alarm(name):
    model, data = HEALTHY[name]()
    findings = found(model, data, budget="full")
    assert serious(findings) == []
    assert not any("could not run" in finding.what for finding in findings.values())


def test_a_text_that_repeats_itself_is_no_leak():
    few = torch.randint(3, (300, 3), generator=torch.Generator().manual_seed(0))
    assert split_overlap(few[:200], few[200:]) == [], "the training part repeats itself as well"
    many = torch.rand(200, 3)
    assert split_overlap(many, many[:50])[0].severity == "error"


def test_weights_in_the_loss_are_the_cure_for_rare_classes():
    y = torch.cat([torch.zeros(190), torch.ones(10)]).long()
    assert class_imbalance(y)[0].severity == "warning"
    assert class_imbalance(y, weighted=True)[0].severity == "info"
    weights = torch.tensor([1.0, 1.0, 1.0, 19.0])
    model = changed(loss=lambda self, output, target: F.cross_entropy(output, target, weight=weights))
    data = loader(X, torch.where(torch.arange(200) % 20 == 0, 3, 0))
    assert found(model, data)["class-imbalance"].severity == "info"
    assert found(Program(), data)["class-imbalance"].severity == "warning"


def test_dropout_left_on_is_no_mixing():
    class Left(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), training=True)

    findings = found(Program(Left(6, 4)))
    assert "batch-mixing" not in findings
    assert "nondeterministic-eval" in findings


# Sick, and missed once


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(6, 8), nn.ReLU()]
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Cleared(Program):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        pass


class EveryFourth(Program):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 4 == 3:
            optimizer.zero_grad()


def deep(bias=0.0, act=nn.ReLU, scale=1.0):
    net = nn.Sequential(nn.Linear(6, 16), act(), nn.Linear(16, 4))
    nn.init.constant_(net[0].bias, bias)
    net[0].weight.data *= scale
    return Program(net)


def asleep():
    program = Program(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)))
    program.net.eval()
    return program


def slow_norm():
    net = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32, momentum=1e-3), nn.ReLU(), nn.Linear(32, 4))
    return Program(net)  # not slow enough to be told from the number alone


def frozen():
    program = Program()
    program.net[0].requires_grad_(False)
    return program


def small():
    program = Program(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)))
    for p in program.parameters():
        p.data *= 1e-3
    return program


def unrelated():
    return loader(X, Y[torch.randperm(200, generator=torch.Generator().manual_seed(5))])


def poisoned():
    x = torch.cat([X] * 4)
    x[700, 2] = torch.nan
    return loader(x, torch.cat([Y] * 4))


class SlowByHand(ByHand):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


class Wild(Regression):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=5.0)


REGRESSION = (X, X.sum(1))
FAULTS = {
    "hidden layers": ("params-not-optimized", "error", "quick", lambda: (Program(Hidden()), None)),
    "gradients kept": ("exploding-gradient", "error", "quick", lambda: (Cleared(), None)),
    "dead": ("dead-units", "error", "quick", lambda: (deep(-30.0), None)),
    "saturated": ("saturated-units", "warning", "quick", lambda: (deep(act=nn.Tanh, scale=100), None)),
    "asleep": ("train-eval-mismatch", "warning", "quick", lambda: (asleep(), None)),
    "slow statistics": ("train-eval-mismatch", "warning", "full", lambda: (slow_norm(), loader(X * 3 + 5, Y))),
    "dropped": ("train-eval-mismatch", "warning", "quick", lambda: (Program(MLP(6, 4, dropout=0.95)), None)),
    "frozen": ("no-update", "warning", "quick", lambda: (frozen(), None)),
    "small": ("activation-scale", "warning", "quick", lambda: (small(), None)),
    "minus": ("cannot-overfit", "error", "quick",
              lambda: (changed(loss=lambda s, o, y: -F.cross_entropy(o, y)), None)),
    "ReLU": ("output-activation", "warning", "quick",
             lambda: (changed(loss=lambda s, o, y: F.cross_entropy(o.relu(), y)), None)),
    "labels -1 and 1": ("labels-range", "error", "quick", lambda: (Binary(), loader(X, (Y > 1) * 2.0 - 1))),
    "unrelated labels": ("input-ignored", "warning", "full", lambda: (Program(MLP(6, 4, hidden_features=(64,))),
                                                                      unrelated())),
    "one NaN of many": ("input-nonfinite", "error", "full", lambda: (None, poisoned())),
    "rate too low": ("lr-too-low", "warning", "full",
                     lambda: (changed(configure_optimizers=lambda s: torch.optim.SGD(s.parameters(), lr=1e-5)), None)),
    "rate too low, loss by hand": ("lr-too-low", "warning", "full", lambda: (SlowByHand(), loader())),
    "weights NaN": ("nonfinite", "error", "full", lambda: (weights(lambda net: net[0].weight.fill_(torch.nan)), None)),
    "rate too high": ("lr-too-high", "error", "full", lambda: (Wild(), loader(*REGRESSION))),
    "decay": ("cannot-overfit", "warning", "full",
              lambda: (changed(configure_optimizers=lambda s: torch.optim.SGD(s.parameters(), 0.01, weight_decay=50)),
                       None)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name):
    rule, severity, budget, make = FAULTS[name]
    findings = found(*make(), budget=budget)
    assert rule in findings, findings
    assert findings[rule].severity == severity


class Strings(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return "a text", index % 4


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 4)

    def forward(self, texts):
        return self.layer(torch.tensor([[float(len(text))] for text in texts]))


class Formula(Program):
    def __init__(self):
        super().__init__()
        del self.net
        self.slope = nn.Parameter(torch.zeros(6))

    def training_step(self, batch, batch_idx):
        return (batch[0] @ self.slope - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (changed(training_step=lambda s, batch, i: None), None), "returned NoneType, not a loss"),
        (lambda: (Program(Bag()), DataLoader(Strings(), 8, shuffle=True)), "inputs are tuple, not a tensor"),
        (lambda: (Formula(), None), "calls neither a loss of torch.nn.functional nor the model's layers"),
    ],
)
def test_what_cannot_be_tried_is_a_note_that_says_why(make, message):
    findings = found(*make())
    (finding,) = (f for f in findings.values() if "could not run" in f.what and message in f.what)
    assert finding.severity == "info"
    assert not any(f.severity == "error" for f in findings.values())


def test_whole_batches_that_cannot_be_cut_are_left_to_the_loader():
    class Batches(Dicts):
        def __getitem__(self, index):
            return {"x": X[index], "y": Y[index]}

    batches = DataLoader(Batches(), sampler=BatchSampler(SequentialSampler(X), 16, drop_last=False), batch_size=None)
    finding = found(FromDict(), batches)["left-out"]
    assert finding.what.endswith("were left out, since training samples cannot be had past the loader")


def test_a_loader_in_a_list_is_found():
    class Listed(LightningDataModule):
        def train_dataloader(self):
            return [loader(X * 0, Y)]

        def val_dataloader(self):
            return []

    assert found(Program(), Listed())["input-constant"].severity == "error"


def test_accumulating_on_purpose_is_allowed():
    assert "exploding-gradient" not in found(EveryFourth())


def test_targets_against_outputs_with_one_axis_more():
    class AllPairs(Regression):
        def loss(self, output, y):
            return F.mse_loss(output, y)

    assert found(AllPairs(), loader(*REGRESSION))["batch-mixing"].severity == "error"
    assert "batch-mixing" not in found(Regression(), loader(*REGRESSION))


def test_a_stream_is_copied_not_read():
    class Stream(IterableDataset):
        read = 0

        def __iter__(self):
            for pair in TensorDataset(*blobs()):
                self.read += 1
                yield pair

    stream = Stream()
    model = changed(loss=lambda s, o, y: F.cross_entropy(o.softmax(1), y))
    assert found(model, DataLoader(stream, 8))["output-activation"].severity == "error"
    assert stream.read == 0


def test_a_full_check_leaves_the_model_as_it_was():
    model = Classifier(MLP(6, 4, dropout=0.5), num_classes=4)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    check(model, [loader(), loader(shuffle=False)], budget="full", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()]


# Pure rules


def test_bounds_of_inputs():
    assert input_values(torch.full((1, 4), 7.0)) == [], "one sample is no distribution"
    x = torch.stack([torch.linspace(-20, 20, 50), torch.linspace(-0.001, 0.001, 50)], dim=1)
    assert input_values(x)[0].what == "standard deviations of the features reach from 0.00059 to 12"
    assert input_values(x[:, 1:] * 1e4) == []
    assert sample_input({"x": 1, "y": 2}) == 1
    assert sample_input({"pixels": 3, "y": 2}) == 3
    assert sample_input({}) is None


def test_labels_that_are_all_ignored_missing_or_the_same():
    assert labels_range(torch.full((4,), -100), 3) == []
    assert class_imbalance(torch.zeros(0)) == []
    same = class_imbalance(torch.ones(16))
    assert (same[0].severity, same[0].what) == ("warning", "all 16 labels are the same")
    assert class_imbalance(torch.ones(15)) == [], "a small batch may be so by chance"


def test_one_batch_has_no_order():
    assert unshuffled_training(loader(batch_size=200, shuffle=False)) == []
    (finding,) = unshuffled_training(loader(batch_size=50, shuffle=False))
    assert finding.what == "its 4 batches come in the same order in every epoch"


def test_losses_that_cannot_be_had_are_not_judged():
    wrong = LossCall("cross_entropy", torch.zeros(8, 3), torch.full((8,), 5))
    assert wrong.each_loss() is None
    assert loss_at_init(wrong, 1.0) == []
    short = LossCall("cross_entropy", torch.zeros(8, 3), torch.zeros(4).long())
    assert short.shuffled_loss(torch.arange(4)) is None
    assert broadcast_loss(LossCall("mse_loss", torch.zeros(8, 3), torch.zeros(8))) == []
    assert first_and_last(torch.tensor(1.0), 3) == []
    assert first_and_last(torch.arange(7), 3) == []


def test_a_sigmoid_before_its_own_loss():
    out, y = torch.full((8,), 0.5), torch.ones(8)
    twice = LossCall("binary_cross_entropy_with_logits", out, y, last_operation="SigmoidBackward0")
    assert output_activation(twice)[0].what == (
        "binary_cross_entropy_with_logits gets the output of a sigmoid, and applies it again"
    )
    assert output_activation(LossCall("binary_cross_entropy_with_logits", out, y)) == []


def test_the_first_loss_of_a_regression():
    y = torch.linspace(-1, 1, 21)

    def findings(prediction, target=y, name="mse_loss"):
        call = LossCall(name, prediction, target)
        return loss_at_init(call, call.each_loss().mean().item())

    far = findings(torch.full((21,), 10.0))
    assert far[0].what == "the first loss is 100, but the targets' variance is 0.385"
    assert findings(torch.zeros(21)) == []
    assert findings(torch.full((21,), 10.0), name="l1_loss") == [], "its scale is another one"
    assert findings(torch.full((1,), 10.0), y[:1]) == [], "one target has no variance"
    assert findings(torch.full((21,), 10.0), torch.ones(21)) == [], "nor have equal ones"


def test_optimized_parameters_of_another_model():
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    both = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    (finding,) = params_not_optimized(net, [both])
    assert (finding.severity, finding.what) == ("warning", "2 of 4 optimized parameters do not belong to the model")
    findings = params_not_optimized(net, [torch.optim.SGD(other.parameters(), lr=0.1)])
    assert [f.severity for f in findings] == ["error", "error"]
    assert findings[1].what == "2 of 2 optimized parameters do not belong to the model"


def test_a_run_without_a_seed_is_noted(monkeypatch):
    assert unseeded() == []
    monkeypatch.delenv("PL_GLOBAL_SEED")
    (finding,) = unseeded()
    assert (finding.severity, finding.cure) == ("info", "Call seed_everything(0, workers=True) first.")


def test_bounds_of_outputs():
    y = torch.linspace(0, 1, 20)
    assert bounded_outputs(LossCall("mse_loss", y, y, last_operation="SigmoidBackward0")) == [], "targets fit in"
    assert bounded_outputs(LossCall("mse_loss", y, y * 3, last_operation="SigmoidBackward0"))[0].severity == "error"
    assert bounded_outputs(LossCall("mse_loss", y, y - 1, last_operation="AddmmBackward0")) == []
    assert bounded_outputs(LossCall("nll_loss", y, y, last_operation="LogSoftmaxBackward0")) == []


def test_broadcast_wants_all_pairs():
    assert broadcast_loss(LossCall("mse_loss", torch.zeros(8, 1), torch.zeros(8, 1))) == []
    assert broadcast_loss(LossCall("mse_loss", torch.zeros(8, 3), torch.zeros(1, 3))) == [], "one target for all"
    assert broadcast_loss(LossCall("cross_entropy", torch.zeros(8, 3), torch.zeros(8))) == []


def test_negated_only_if_it_is_the_loss_itself():
    call = LossCall("mse_loss", torch.zeros(2), torch.ones(2), value=torch.tensor(1.0))
    assert negated_loss([call], 1.0) == []
    assert negated_loss([call], -0.7) == [], "other terms may be negative"
    assert negated_loss([call, call], -1.0) == []


def test_first_loss_of_few_samples_must_be_far_above_by_chance_too():
    y = torch.arange(32) % 3
    generator = torch.Generator().manual_seed(0)
    wide = LossCall("cross_entropy", 30 * torch.randn(32, 3, generator=generator), y)
    assert loss_at_init(wide, wide.each_loss().mean().item())[0].severity == "warning"
    narrow = LossCall("cross_entropy", torch.randn(32, 3, generator=generator), y)
    assert loss_at_init(narrow, 1.2) == []


def test_frozen_weights_that_were_learned_are_right():
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    assert frozen_at_random(net) == [], "nothing is frozen"
    net[0].requires_grad_(False)
    assert len(frozen_at_random(net)) == 1
    net[0].weight.data *= 0.5
    assert frozen_at_random(net) == [], "within the bounds, but not as they are drawn"
    net[0].weight.data += 0.1 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    assert frozen_at_random(net) == []


def test_frozen_weights_that_look_drawn_by_chance_beside_trained_ones():
    net = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 20), nn.Linear(40, 40)).requires_grad_(False)
    assert [found.where for found in frozen_at_random(net)] == ["0.weight, 1.weight, 2.weight"]
    net[1].weight.data *= 1.5
    assert [found.where for found in frozen_at_random(net)] == ["2.weight"], "1,600 weights are no chance, 72 may be"


def test_small_weights_in_most_layers():
    net = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 2))
    assert weights_too_small(net) == []
    net[2].weight.data *= 1e-3
    assert weights_too_small(net) == [], "a head may begin small"


def test_clipping_at_the_beginning():
    gradients = [torch.ones(100)]
    assert clipping_binds(gradients, 1.0, adaptive=False) == []
    assert clipping_binds(gradients, 0.01, adaptive=False)[0].severity == "warning"
    assert clipping_binds(gradients, 0.01, adaptive=True)[0].severity == "info"


def test_no_update_allows_rounding_errors_only():
    weights = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    after = {"w": torch.zeros(2, 2), "b": torch.ones(2)}
    assert no_update(weights, after, ["w", "b"], {"w": torch.ones(2, 2), "b": torch.full((2,), 1e-8)}) == []
    assert no_update(weights, after, ["w", "b"], {"w": torch.ones(2, 2), "b": torch.ones(2)})[0].where == "b"
    assert no_update(weights, after, ["w", "b"], {"w": torch.ones(2, 2)})[0].where == "b", "no gradient at all"


def test_idle_units_by_activation():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-50.0, -50.0, 0.0, 5.0]))
        net[4].bias.fill_(99.0)
    with trace_layers(net) as trace:
        net(torch.rand(32, 2, generator=torch.Generator().manual_seed(0)))
    idle = {call.name: call.idle for call in trace.calls}
    assert idle["1"] in (0.5, 0.75), "the third unit may be on either side"
    assert idle["3"] == 0
    assert idle["5"] == 1
    assert idle_units(trace.calls, samples=32) == [], "the output may be sure, half of the units may rest"
    flat = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0), nn.ReLU())
    with trace_layers(flat) as trace:
        flat(torch.ones(32, 2) * -99 * flat[0].weight.detach().sign())
    assert [call.idle for call in trace.calls] == [0, 0, 0], "one axis does not tell units from samples"
    dead = [LayerCall("a", nn.ReLU(), 0.0, 0.9), LayerCall("b", nn.Linear(2, 2), 1.0)]
    assert idle_units(dead, samples=32)[0].severity == "warning"
    assert idle_units(dead, samples=8) == []


def test_momentum_of_batch_norm():
    assert slow_statistics(nn.BatchNorm1d(3)) == []
    assert slow_statistics(nn.BatchNorm1d(3, momentum=None)) == [], "a plain average"
    assert slow_statistics(nn.BatchNorm1d(3, track_running_stats=False)) == []
    assert slow_statistics(nn.BatchNorm1d(3, momentum=1e-4))[0].severity == "warning"


def test_labels_of_a_binary_loss():
    assert binary_labels_range(torch.tensor([0.0, 0.3, 1.0])) == []
    assert binary_labels_range(torch.tensor([0, 2]))[0].severity == "error"


def test_fit_score_is_about_normal_for_unrelated_labels():
    torch.manual_seed(0)
    scores = [fit_score(LossCall("cross_entropy", torch.randn(200, 3), torch.arange(200) % 3)) for _ in range(40)]
    assert abs(sum(scores) / 40) < 0.6
    assert 0.6 < torch.tensor(scores).std() < 1.6
    assert fit_score(None) == float("inf")


def test_first_rows_of_any_batch():
    batch = {"x": torch.arange(4), "y": (torch.arange(4), "name"), "scale": torch.tensor(3)}
    rows = first_rows(batch, 2)
    assert rows["x"].tolist() == [0, 1]
    assert rows["y"][0].tolist() == [0, 1]
    assert rows["y"][1] == "name"
    assert rows["scale"] == 3


def test_integer_inputs_and_tokens_stay_quiet():
    assert serious(found(Program(Tokens()), tokens(), budget="full")) == []
