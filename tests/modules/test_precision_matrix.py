"""Every pair of settings meets in some run: precision, clipping, accumulation, optimizer, kernels, callbacks."""

import itertools
import warnings

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks._base import UserInputError

PRECISIONS = ["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
SETTINGS = {
    "precision": PRECISIONS,
    "clipping": ["none", "norm", "value", "own"],
    "accumulate": [1, 2],
    "optimizer": ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"],
    "implementation": ["auto", "fused", "foreach", "plain"],
    "tricks": ["recipe", "monitors", "penalty", "none"],
    "module": ["classifier", "regressor"],
}


def covering_array(settings):
    """Runs in which each pair of values of two settings meets at least once, chosen greedily."""
    names = list(settings)
    open_pairs = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in settings[a] for y in settings[b]
    }
    runs = []
    while open_pairs:
        run = dict(min(open_pairs, key=repr))
        for name in names:
            if name not in run:
                gains = {
                    value: sum(
                        tuple(sorted([(name, value), item], key=lambda i: names.index(i[0]))) in open_pairs
                        for item in run.items()
                    )
                    for value in settings[name]
                }
                run[name] = max(gains, key=gains.get)
        open_pairs -= set(itertools.combinations([(name, run[name]) for name in names], 2))
        runs.append(run)
    return runs


RUNS = covering_array(SETTINGS)
NOT_FUSED = {"rmsprop"}  # torch has no such kernel


def tricks_of(name):
    if name == "recipe":
        return lt.recipe("val_loss")
    if name == "monitors":
        return [lt.NormMonitor(every_n_steps=1), lt.ActivationMonitor(), lt.Diagnosis(report_path=None), lt.Preflight()]
    return [lt.WeightPenalty(l2=1e-3, max_norm=3.0)] if name == "penalty" else []


def model_of(run, **more):
    net = lt.MLP(4, 3, hidden_features=(8,), norm="layer", dropout=0.1)
    options = {"optimizer": run["optimizer"], "implementation": run["implementation"], "lr": 1e-3, **more}
    kind = lt.Classifier if run["module"] == "classifier" else lt.Regressor
    if run["clipping"] == "own":

        class Clips(kind):
            def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

        kind = Clips
    return kind(net, 3, **options)


def loader(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    y = torch.randint(3, (32,), generator=generator) if kind == "classifier" else x[:, :3] * 2
    return DataLoader(TensorDataset(x, y), batch_size=8)


def precision_of(name):
    """Options of a trainer; 16-mixed with a real gradient scaler, which Lightning would replace by bf16 on a CPU."""
    if name != "16-mixed":
        return {"precision": name}
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))]}


def fit(run, tricks):
    torch.manual_seed(0)
    model = model_of(run)
    clipping = {
        "norm": {"gradient_clip_val": 1.0},
        "value": {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    }
    trainer = quiet_trainer(
        max_epochs=1,
        **precision_of(run["precision"]),
        accumulate_grad_batches=run["accumulate"],
        callbacks=tricks,
        num_sanity_val_steps=0,
        **clipping.get(run["clipping"], {}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader(run["module"]), loader(run["module"]))
    return model, trainer


def test_every_pair_of_settings_meets():
    met = {pair for run in RUNS for pair in itertools.combinations([(name, run[name]) for name in SETTINGS], 2)}
    for a, b in itertools.combinations(SETTINGS, 2):
        assert {((a, x), (b, y)) for x in SETTINGS[a] for y in SETTINGS[b]} <= met


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(str(run[name]) for name in SETTINGS))
def test_it_trains_or_says_which_setting_does_not_fit(run):
    if run["implementation"] == "fused" and run["optimizer"] in NOT_FUSED:
        with pytest.raises(UserInputError, match="no fused implementation"):
            model_of(run)
        return
    model, trainer = fit(run, tricks_of(run["tricks"]))
    assert trainer.global_step == 4 // run["accumulate"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if run["tricks"] == "monitors":
        plain, _ = fit(run, [])
        for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine, theirs), f"monitors changed {name}"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_fused_optimizer_clips_as_a_plain_one(precision):
    """Also under a gradient scaler, which unscales before the step."""
    run = {"precision": precision, "clipping": "norm", "accumulate": 1, "optimizer": "adam", "module": "classifier"}
    fused, _ = fit({**run, "implementation": "fused"}, [])
    plain, _ = fit({**run, "implementation": "plain"}, [])
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_an_optimizer_over_a_part_of_the_module_clips_too():
    class Own(lt.Classifier):
        def configure_optimizers(self):
            return lt.build_optimizer("adamw", self.net, implementation="fused")

    trainer = quiet_trainer(precision="bf16-mixed", gradient_clip_val=1.0)
    trainer.fit(Own(nn.Sequential(nn.Linear(4, 3)), 3), loader("classifier"), loader("classifier"))
    assert trainer.global_step == 4
