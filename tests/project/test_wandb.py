"""Weights & Biases for real: offline runs of whole trainings, read back from the file that would be sent."""

import csv
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from wandb_file import WandbRun

import lightning_tricks as lt
from lightning_tricks._base._run_records import _log_to_wandb

NOT_LOGGED_BY_US = {"trainer/global_step", "_step", "_runtime", "_timestamp", "_wandb"}


class Sick(lt.Classifier):
    """A classifier whose first layer is left out of the optimizer."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.layers[-1].parameters(), 0.01)


def make_model(kind=lt.Classifier):
    return kind(lt.MLP(64, 10, hidden_features=(16,), dropout=0.3), num_classes=10, lr=0.01)


def wandb_logger(folder, **options):
    return lt.TolerantWandbLogger(project="test", save_dir=folder, offline=True, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One training with three loggers at once, then a test with Monte-Carlo dropout."""
    import wandb

    folder = tmp_path_factory.mktemp("run")
    loggers = [
        wandb_logger(folder, id="the-run"),
        CSVLogger(folder / "csv", name="", version=""),
        TensorBoardLogger(folder / "tb", name="", version=""),
    ]
    callbacks = [lt.Preflight(), lt.Diagnosis(), *lt.recipe("val_loss", patience=2)]
    data = lt.DigitsDataModule(batch_size=256)
    trainer = quiet_trainer(max_epochs=4, callbacks=callbacks, logger=loggers, log_every_n_steps=1)
    model = make_model(Sick)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Preflight says what is sick
        trainer.fit(model, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    trainer.test(lt.MCDropoutPredictor(model, samples=5), data, verbose=False)
    wandb.finish()
    for logger in loggers[1:]:
        logger.save()
    return SimpleNamespace(folder=folder, trainer=trainer, model=model, wandb=WandbRun(folder))


def is_number(value):
    return isinstance(value, int | float)


def numbers_of_wandb(run):
    """{metric: {(step, value), ...}}."""
    found = {}
    for row in run.wandb.history:
        for name, value in row.items():
            if is_number(value) and name not in NOT_LOGGED_BY_US:
                found.setdefault(name, set()).add((row["trainer/global_step"], float(value)))
    return found


def numbers_of_csv(run):
    found = {}
    with (run.folder / "csv/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, set()).add((int(row["step"]), float(value)))
    return found


def events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.folder / "tb"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_every_number_is_there_with_the_step_that_the_csv_file_has(run):
    ours, theirs = numbers_of_wandb(run), numbers_of_csv(run)
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        steps = {step for step, _ in values}
        assert {step for step, _ in ours[name]} == steps, name
        for step in steps:
            a, b = (sorted(v for s, v in side if s == step) for side in (ours[name], values))
            assert a[-1] == pytest.approx(b[-1], rel=1e-6, nan_ok=True), (name, step)


def test_the_steps_are_those_of_the_optimizer(run):
    per_epoch = run.trainer.num_training_batches
    assert [step for step, _ in run.wandb.rows("val_loss")] == [(i + 1) * per_epoch - 1 for i in range(4)]
    last = run.trainer.global_step
    assert {step for step, _ in run.wandb.rows("early_stopping/best_score")} == {last}
    assert all(0 <= row["trainer/global_step"] <= last for row in run.wandb.history if "trainer/global_step" in row)


def test_norms_losses_scores_and_uncertainty_are_among_the_numbers(run):
    names = set(numbers_of_wandb(run))
    assert {"train_loss", "val_loss", "val_acc", "val_ece", "epoch"} <= names
    assert {f"test_{metric}_dropout_{state}" for metric in ("acc", "nll") for state in ("off", "on")} <= names
    assert any(name.startswith("norm") for name in names)


def test_pictures_and_tables_are_there_and_their_files_too(run):
    pictures = {n for row in run.wandb.history for n, v in row.items() if kind(v) == "images/separated"}
    tables = {n for row in run.wandb.history for n, v in row.items() if kind(v) == "table-file"}
    assert {"norms/gradients", "norms/weights", "init/signal", "test/most_uncertain_pictures"} <= pictures
    assert {"norms/worst_layers", "test/most_uncertain", "early_stopping/message", "preflight"} - {
        "preflight"
    } <= tables
    pages = {n for row in run.wandb.history for n, v in row.items() if kind(v) == "html-file"}
    assert pages == {"pages/preflight", "pages/report"}
    media = {path.suffix for path in run.folder.glob("wandb/**/media/**/*") if path.is_file()}
    assert {".png", ".json", ".html"} <= media


def kind(value):
    return value.get("_type") if isinstance(value, dict) else None


def test_settings_are_the_configuration(run):
    config = {name: value for name, value in run.wandb.config.items() if name != "_wandb"}
    assert (value_of(config["num_classes"]), value_of(config["optimizer"]), value_of(config["lr"])) == (
        10,
        "adam",
        0.01,
    )


def value_of(entry):
    return entry["value"] if isinstance(entry, dict) and "value" in entry else entry


def test_the_summary_says_what_the_run_came_to(run):
    stopping = run.trainer.early_stopping_callback
    said = run.wandb.summary["early_stopping/best_val_loss"], run.wandb.summary["early_stopping/best_epoch"]
    assert said == (pytest.approx(float(stopping.best_score)), stopping.best_epoch)
    assert run.wandb.summary["early_stopping/stopped_by"] == stopping.reason.name.lower()
    assert run.wandb.summary["early_stopping/why"] == stopping.message
    written = json.loads((run.folder / "csv/summary.json").read_text())
    assert written == {name: run.wandb.summary[name] for name in written}


def test_a_broken_model_is_an_alert_and_the_reports_are_artifacts(run):
    title, text, level = run.wandb.alerts[0]
    assert (title, level) == ("Preflight", "ERROR")
    assert "params-not-optimized" in text
    reports = {one.name: one for one in run.wandb.artifacts if one.type == "report"}  # W&B makes one of each table, too
    assert set(reports) == {"preflight-the-run", "report-the-run"}
    for name, one in reports.items():
        assert [entry.path for entry in one.manifest.contents] == [name.removesuffix("-the-run") + ".html"]
    assert "params-not-optimized" in (run.folder / "csv/artifacts/preflight.html").read_text()


def test_tensorboard_and_csv_lose_nothing_but_the_widgets(run):
    tags, names = events(run).Tags(), set(numbers_of_wandb(run))
    assert names - {"hp_metric"} == set(tags["scalars"]) - {"hp_metric"}
    pictures = {n for row in run.wandb.history for n, v in row.items() if kind(v) == "images/separated"}
    in_tables = {tag for tag in tags["images"] if "/picture " in tag}  # TensorBoard shows them beside the table
    assert pictures == set(tags["images"]) - in_tables
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    tables = {n for row in run.wandb.history for n, v in row.items() if kind(v) == "table-file"}
    assert tables | {"alerts", "summary"} <= texts
    assert {tag.partition("/picture ")[0] for tag in in_tables} <= tables
    files = {path.stem.split("-step")[0] for path in (run.folder / "csv").glob("*/*-step*")}
    assert {name.replace("/", "_") for name in pictures | tables} <= files
    assert {path.name for path in (run.folder / "tb/artifacts").iterdir()} == {"preflight.html", "report.html"}
    assert "Preflight" in (run.folder / "csv/alerts.txt").read_text()


def test_a_resumed_run_goes_on_in_the_same_run(run, tmp_path):
    import wandb

    logger = wandb_logger(tmp_path, id="the-run")
    trainer = quiet_trainer(max_epochs=5, callbacks=lt.recipe("val_loss", patience=20), logger=logger)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the checkpoint had Preflight too
        trainer.fit(make_model(Sick), lt.DigitsDataModule(batch_size=256), ckpt_path=run.folder / "last.ckpt")
    wandb.finish()
    again = WandbRun(tmp_path)
    assert again.run.run_id == run.wandb.run.run_id == "the-run"
    assert [step for step, _ in again.rows("val_loss")] == [5 * run.trainer.num_training_batches - 1]


def fit_on_rank(rank, folder):
    logger = wandb_logger(folder / f"rank{rank}")
    trainer = quiet_trainer(strategy="ddp", devices=2, logger=logger, callbacks=[lt.Preflight(), *lt.recipe()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(make_model(), lt.DigitsDataModule(batch_size=256))
    if rank == 0:
        logger.experiment.finish()
    return trainer.global_step


def test_other_ranks_write_nothing(tmp_path):
    steps = run_ranks(fit_on_rank, tmp_path)
    assert steps[0] == steps[1] > 0
    assert [step for step, _ in WandbRun(tmp_path / "rank0").rows("val_loss")] == [steps[0] - 1]
    assert not (tmp_path / "rank1").exists()


@pytest.fixture(scope="module")
def expected():
    """Weights of the training without a logger."""
    torch.manual_seed(0)
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(callbacks=lt.recipe()).fit(model, lt.DigitsDataModule(batch_size=256))
    return model.state_dict()


def check_that_it_trained_and_was_said_once(logger, message, expected):
    torch.manual_seed(0)
    model = make_model()
    trainer = quiet_trainer(callbacks=[lt.Preflight(), *lt.recipe()], logger=logger, max_epochs=1)
    with pytest.warns(UserWarning, match=message) as caught:
        trainer.fit(model, lt.DigitsDataModule(batch_size=256))
    said = [str(w.message) for w in caught if "Biases" in str(w.message) or "WandbLogger" in str(w.message)]
    assert len(said) == 1, said
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


def test_not_logged_in_is_said_once_and_training_goes_on(expected, tmp_path, monkeypatch):
    """The real library refuses: nobody has logged in here, and nobody can be asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger = lt.TolerantWandbLogger(project="test", save_dir=tmp_path, mode="online")
    check_that_it_trained_and_was_said_once(
        logger, r"Weights & Biases could not begin a run: .*Training goes on", expected
    )
    assert logger.gave_up


def test_a_full_disk_is_said_once_and_training_goes_on(expected, tmp_path):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    logger = wandb_logger(tmp_path, experiment=FullRun(full))
    check_that_it_trained_and_was_said_once(logger, "could not write.*No space left on device", expected)


class FullRun:
    """A W&B run whose every write fails."""

    id = "full"

    def __init__(self, full):
        self.log = self.alert = self.log_artifact = full
        self.summary = self.config = SimpleNamespace(update=full)
        self.define_metric = lambda *_args, **_kwargs: None


def test_a_file_that_is_no_page_is_an_artifact_only(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("a,b")
    kept, pages = [], []
    logger = SimpleNamespace(
        experiment=SimpleNamespace(id="the-run", log_artifact=kept.append), log_metrics=lambda *a, **k: pages.append(a)
    )
    _log_to_wandb(logger, table, "table", 3)
    (artifact,) = kept
    assert (artifact.name, artifact.type, list(artifact.manifest.entries)) == ("rows-the-run", "table", ["rows.csv"])
    assert pages == []
