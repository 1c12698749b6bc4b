"""What a search leaves: one W&B run per trial, a page, folds that were pruned, the vertex of a parabola."""

import csv
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from search_nets import Once, Slope, Tiny, find, kill_self
from wandb_file import WandbRun

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.tune._result import Retrained, SearchResult
from lightning_tricks.tune.execution._progress import FileTrial, FoldReports, FoldsStopped
from lightning_tricks.tune.execution._study import RUN
from lightning_tricks.tune.reporting._run_table import mean_and_sd, write_table

optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_each_trial_is_a_wandb_run_in_the_searchs_group(tmp_path):
    """The real library, offline."""
    result = find(
        trials=2,
        folder=tmp_path / "s",
        logger={"project": "slopes", "offline": True},
        trainer={"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
    )
    for row in result.runs:
        run = WandbRun(tmp_path / "s" / row["run"])
        assert (run.run.project, run.run.run_group, run.run.display_name) == ("slopes", "s", row["run"])
        assert run.config["lr"] == float(row["lr"])
        assert run.config["start"] == float(row["start"])
        assert run.summary["value"] == pytest.approx(float(row["value"]))
        assert run.rows("val_loss")[-1][1] == pytest.approx(float(row["value"]))


def test_killed_training_goes_on_in_its_wandb_run(tmp_path):
    """Although the searching process has a W&B service of its own."""
    import wandb

    wandb.setup().ensure_service()
    result = find(
        trials=1,
        folder=tmp_path / "s",
        logger={"project": "slopes", "offline": True},
        trainer={"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1},
        callbacks=lambda: [Once(tmp_path / "flag", 1, kill_self)],
    )
    (row,) = result.runs
    folder = tmp_path / "s" / row["run"]
    killed, finished = sorted((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    run_id = (folder / "wandb-id").read_text()
    assert all(run_id in path.name for path in (killed, finished))
    run = WandbRun(finished)
    assert [step for step, _ in run.rows("val_loss")] == [3, 5], "the epochs after the kill, at their steps"
    assert run.summary["status"] == "complete"


def test_page_tells_winner_windows_and_runs(tmp_path):
    result = find(
        trials=16,
        workers=2,
        method="coarse_to_fine",
        folder=tmp_path / "<b>s</b>",
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": True},
        report=True,
    )
    page = (tmp_path / "<b>s</b>" / "report.html").read_text()
    assert "<b>s</b>" not in page
    for text in (f"{result.best_params['lr']:.4g}", "run-015", "0.001 to 1", "coarse", "shrunk"):
        assert text in page
    assert page.count("data:image/png;base64,") == 5


def test_page_that_cannot_be_drawn_does_not_take_the_result_along(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_tricks.tune.reporting._pictures.search_progress", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match=r"report\.html could not be written: ZeroDivisionError"):
        result = find(trials=1, folder=tmp_path / "s", report=True)
    assert len(result.runs) == 1


def test_table_survives_many_writers(tmp_path):
    path, rows = tmp_path / "runs.csv", [{"run": f"run-{i:03d}", "reason": 'a "quoted",\nline'} for i in range(50)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_table(path, rows), range(40)))
    with path.open(newline="") as file:
        assert [(row["run"], row["reason"]) for row in csv.DictReader(file)] == [(r["run"], r["reason"]) for r in rows]
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


class Told(Slope):
    """A net whose loss is what the hyperparameter says, times something that differs from fold to fold."""

    def __init__(self, loss):
        super().__init__()
        self.told = loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.told * (1 + batch[0].double().mean()))


def test_folds_are_given_up_when_the_best_trials_folds_are_better(tmp_path):
    data = lt.TabularDataModule(torch.rand(60, 1) + 1, torch.arange(60) % 2, scale="none", batch_size=60)
    trainer = {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu"}
    space = {"loss": lt.Choice([1.0, 2.0])}
    options = {"method": "grid", "seed": 1, "trials": 2, "trainer": trainer}
    result = find(Told, space, data=data, folds=6, prune="wilcoxon", folder=tmp_path / "s", **options)
    good, bad = sorted(result.study.trials, key=lambda t: t.params["loss"])
    assert good.number == 0, "the grid's order decides which is the better one's rival"
    assert (good.state.name, len(good.user_attrs["fold_values"])) == ("COMPLETE", 6)
    assert (bad.state.name, len(bad.user_attrs["fold_values"])) == ("PRUNED", 4)
    assert sorted(good.intermediate_values) == list(range(6))
    assert list(good.intermediate_values.values()) == pytest.approx(good.user_attrs["fold_values"])
    with pytest.raises(UserInputError, match="compares folds with folds"):
        find(prune="wilcoxon", folder=tmp_path / "p")


def test_coarse_round_is_never_pruned(tmp_path):
    result = find(
        space={"start": lt.Float(1.0, 2.0)},
        method="coarse_to_fine",
        trials=4,
        folder=tmp_path / "s",
        trainer={"max_epochs": 3, "accelerator": "cpu"},
        prune=optuna.pruners.ThresholdPruner(upper=0.0),
    )
    assert [row["status"] for row in result.runs] == ["complete"] * 4
    assert [row["epochs"] for row in result.runs] == ["3"] * 4


def test_search_without_any_validation_is_an_error_at_once(tmp_path):
    class NoValidation(Slope):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", self.weight.detach())
            return super().training_step(batch, batch_idx)

    options = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0}
    with pytest.raises(UserInputError, match=r"'val_loss', but .* not logged\. Logged so far: train_loss"):
        find(NoValidation, data=Tiny(), trials=9, folder=tmp_path / "s", trainer=options)


def test_page_and_pictures_of_a_search_that_was_trained_again_and_tested(tmp_path):
    study = optuna.create_study()
    for i in range(3):
        params = {"lr": 0.1 + i / 100, "kind": "a"}
        ranges = {"lr": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}
        study.add_trial(create_trial(params=params, distributions=ranges, value=1.0, user_attrs={RUN: f"run-{i}"}))
    write_table(tmp_path / "runs.csv", [{"run": "run-0", "value": 1.0}])
    again = Retrained("run-3", {"lr": 0.125, "kind": "a"}, (1.0, 2.0), 1.5, 0.7071)
    result = SearchResult(
        tmp_path, study, "tpe", "asked for", again.params, 1.5, (again,), {"test_acc": (0.875, 0.0625)}
    )
    assert [path.name for path in result.save_pictures()] == ["progress.png", "points.png", "parallel.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    page = result.to_html().read_text()
    for text in (
        "lr=0.125, kind=a",
        "trained again with other seeds",
        "seen by the winner",
        "0.875",
        "0.0625",
        "0.7071",
    ):
        assert text in page
    assert "run-3 again: 1.5 ± 0.71 over 2 seeds" in result.explain()
    assert "test_acc: 0.875 ± 0.062 (winner only)" in result.explain()


def test_spread_of_one_value_is_unknown():
    mean, sd = mean_and_sd([2.0])
    assert mean == 2.0
    assert sd != sd


def test_a_fold_waits_until_the_search_has_seen_the_one_before(tmp_path, monkeypatch):
    trial, waited = FileTrial(tmp_path), []

    def seen(seconds):
        waited.append(seconds)
        (tmp_path / "seen").write_text(str(len(waited)))

    monkeypatch.setattr("lightning_tricks.tune.execution._progress.time.sleep", seen)
    trial.wait_for_answer()
    assert waited == [], "nothing was reported"
    for fold in range(2):
        trial.report(1.0, fold)
    trial.wait_for_answer()
    assert len(waited) == 2
    (tmp_path / "stop").touch()
    with pytest.raises(FoldsStopped):
        FoldReports(trial, "val_loss", wait=True).begin(2)
