"""The fault benchmark: a mutation is found, a healthy twin excuses what is its own, runs go on, files add to it."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        yield importlib.import_module("benchmarks.faults.__main__")


MODULE = """
import torch
from torch.nn import functional as F
from benchmarks.faults import Case, DoesNotFit, Learner, fault, program


@program("tiny", half="report")
def tiny():
    x = torch.randn(64, 3)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = lambda model: torch.optim.Adam(model.parameters(), lr=0.05)
    return Case(Learner(net, F.cross_entropy, optimizer), (x, y), (x, y.clone()), batch_size=16, epochs=2)


@fault("tiny labels from 1", "labels-range")
def labels(case):
    case.train = (case.train[0], case.train[1] + 1)


@fault("tiny and nowhere", "labels-range")
def nowhere(case):
    raise DoesNotFit("it is made for nothing")
"""


@pytest.fixture
def module(faults, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    yield path
    forget()


def forget():
    registry = importlib.import_module("benchmarks.faults._registry")
    for table in (registry.PROGRAMS, registry.FAULTS):
        for name in [name for name in table if name.startswith("tiny")]:
            del table[name]


def run(faults, module, capsys, *more):
    out = module.parent / "runs.jsonl"
    faults.main(["--module", str(module), "--programs", "tiny", "--out", str(out), "--budget", "quick", *more])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return records, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_programs_and_faults_from_a_file(faults, module, capsys):
    options = ["--faults", "tiny labels", "tiny and", "softmax before", "--seeds", "1", "--healthy-seeds", "2"]
    records, summary = run(faults, module, capsys, *options)
    cells = {(r["fault"], r["seed"]) for r in records}
    assert cells == {
        ("healthy", 0), ("healthy", 1), ("tiny labels from 1", 0), ("softmax before cross_entropy", 0),
    }  # fmt: skip
    assert summary["report"]["found"] == [2, 2]
    assert summary["report"]["named right"] == [2, 2]
    crashed = next(r for r in records if r["fault"] == "tiny labels from 1")
    assert crashed["crash"].startswith("IndexError")
    assert {f["when"] for f in crashed["findings"]} == {"check"}


def test_runs_that_are_there_are_skipped(faults, module, capsys, monkeypatch):
    options = ["--faults", "tiny labels", "--seeds", "1", "--healthy-seeds", "1"]
    first, _ = run(faults, module, capsys, *options)

    def never(*args, **options):
        raise AssertionError("the run is there already")

    monkeypatch.setattr(faults, "run_with", never)
    forget()  # as in a process of its own
    again, summary = run(faults, module, capsys, *options)
    assert again == first
    assert summary["runs"] == 2


def test_the_function_of_worker_processes_is_importable_there(faults):
    """A spawned process does not load a package's ``__main__``."""
    assert not faults.run_with.__module__.endswith("__main__")


def record(fault, score=0.9, findings=(), seed=0, crash=None):
    found = [{"rule": r, "severity": s, "where": "", "what": "", "when": w} for r, s, w in findings]
    return {
        "program": "p", "fault": fault, "seed": seed, "half": "report", "score": score, "crash": crash,
        "findings": found, "steps": 9,
    }  # fmt: skip


def results(faults, *records):
    return importlib.import_module("benchmarks.faults._table").Results(records)


def test_what_the_healthy_twin_has_is_not_found(faults):
    name = "softmax before cross_entropy"
    twin = record("healthy", findings=[("output-activation", "error", "check")])
    same = results(faults, twin, record(name, findings=[("output-activation", "error", "check")]))
    assert same.summary()["found"] == [0, 1]
    assert same.summary()["healthy with an error"] == [1, 1]
    graver = record("healthy", findings=[("output-activation", "warning", 3)])
    worse = results(faults, graver, record(name, findings=[("output-activation", "error", "check")]))
    assert worse.summary()["named right"] == [1, 1]


def test_another_name_is_found_but_not_named_right(faults):
    other = record("softmax before cross_entropy", findings=[("lr-too-low", "warning", 40), ("zero-init", "info", 1)])
    summary = results(faults, record("healthy"), other).summary()
    assert summary["found"] == [1, 1]
    assert summary["named right"] == [0, 1]
    note = record("no seed", findings=[("unseeded", "info", "check")])
    assert results(faults, record("healthy"), note).summary()["named right"] == [1, 1]


def test_harmless_mutations_are_left_out(faults):
    name = "learning rate 1000 times too high"
    harmless = results(faults, record("healthy", 0.9), record(name, 0.89))
    assert harmless.harmless == [(name, "p")]
    assert harmless.summary()["found"] == [0, 0]
    assert results(faults, record("healthy", 0.9), record(name, 0.5)).summary()["found"] == [0, 1]
    assert results(faults, record("healthy", 0.9), record(name, 0.9, crash="x")).summary()["found"] == [0, 1]


def test_wilson_against_the_closed_form_of_a_half(faults):
    table = importlib.import_module("benchmarks.faults._table")
    low, high = table.wilson(50, 100)
    assert low + high == pytest.approx(1)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson 1927; R's prop.test without correction
    assert table.wilson(0, 10)[0] == 0
    assert table.wilson(10, 10)[1] == 1


def test_every_rule_has_a_fault_and_names_are_free_once(faults):
    registry = importlib.import_module("benchmarks.faults._registry")
    named = {rule for fault in registry.FAULTS.values() for rule in fault.rules}
    promised = """params-not-optimized decay-on-bias-or-norm loss-at-init output-bias output-activation input-scale
        input-nonfinite input-constant input-dtype labels-range class-imbalance zero-init symmetric-init bias-not-zero
        activation-scale vanishing-gradient exploding-gradient batch-mixing batchnorm-batch-of-one
        dropout-before-batchnorm train-eval-mismatch no-update cannot-overfit input-ignored split-overlap
        unshuffled-training unseeded nondeterministic-eval dead-units saturated-units not-learning diverging oscillating
        lr-too-high lr-too-low overfitting nonfinite clipping-binds""".split()  # noqa: SIM905
    assert set(promised) <= named
    halves = [p.half for p in registry.PROGRAMS.values()]
    assert min(halves.count("thresholds"), halves.count("report")) >= 10
    with pytest.raises(ValueError, match="named 'no seed' already"):
        registry.fault("no seed", "unseeded")(lambda case: None)
