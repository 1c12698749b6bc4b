"""Pictures, tables, texts and alerts, read back from real loggers."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from wandb_file import WandbRun

from lightning_tricks._base import alert, log_artifact, log_figure, log_metrics, log_summary, log_table, log_text
from lightning_tricks.plots import new_figure

GREY = torch.arange(4.0).reshape(1, 2, 2)
COLOUR = torch.rand(3, 80, 70, generator=torch.Generator().manual_seed(0)) * 9 - 4


def write_everything(trainer):
    figure, ax = new_figure()
    ax.plot([0, 1])
    log_figure(trainer, "norms/heat map", figure, step=7)
    log_table(trainer, "worst layers", ["layer", "norm"], [["net.0", 1.5], ["a|b", 2.0]], step=7)
    log_table(trainer, "pictures", ["n", "a <b>"], [[1, GREY], ["<i>", COLOUR]], step=7)
    log_text(trainer, "why", "it stopped", step=7)
    log_metrics(trainer, {"norm/total": 2.5}, step=7)
    alert(trainer, "NaN", "in layer net.0")


def test_csv_logger_gets_files_beside_its_metrics(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    write_everything(quiet_trainer(logger=logger))
    logger.save()
    assert (tmp_path / "figures/norms_heat_map-step000007.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "tables/worst_layers-step000007.csv").open() as file:
        assert list(csv.reader(file)) == [["layer", "norm"], ["net.0", "1.5"], ["a|b", "2.0"]]
    with (tmp_path / "tables/pictures-step000007.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["n", "a <b>"]
    folder = "pictures-step000007"
    assert rows == [["1", f"{folder}/0000-a__b_.png"], ["<i>", f"{folder}/0001-a__b_.png"]]
    grey = np.asarray(Image.open(tmp_path / "tables" / rows[0][1]))
    assert grey.shape == (64, 64)  # enlarged, each pixel to a square
    assert grey[::32, ::32].tolist() == [[0, 85], [170, 255]]
    colour = np.asarray(Image.open(tmp_path / "tables" / rows[1][1])).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(colour, (COLOUR - COLOUR.min()) / (COLOUR.max() - COLOUR.min()), atol=0.003)
    page = (tmp_path / "tables" / f"{folder}.html").read_text()
    assert "<td>&lt;i&gt;</td>" in page
    assert f'<img src="{folder}/0001-a__b_.png"' in page
    assert not (tmp_path / "tables/worst_layers-step000007.html").exists()
    assert (tmp_path / "texts/why-step000007.txt").read_text() == "it stopped\n"
    assert (tmp_path / "alerts.txt").read_text() == "step 0\tWARN\tNaN\tin layer net.0\n"
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"norm/total": "2.5", "step": "7"}]


def test_tensorboard_gets_its_widgets(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    write_everything(quiet_trainer(logger=logger))
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert tags["images"] == ["norms/heat map", "pictures/picture 1", "pictures/picture 2"]
    assert tags["scalars"] == ["norm/total"]
    assert {"worst layers/text_summary", "why/text_summary", "alerts/text_summary"} <= set(tags["tensors"])
    assert events.Images("norms/heat map")[0].step == 7
    table = events.Tensors("worst layers/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| net.0 | 1.5 |" in table
    assert r"a\|b" in table
    table = events.Tensors("pictures/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| 1 | picture 1 |\n| <i> | picture 2 |" in table


def test_wandb_gets_its_widgets(tmp_path):
    import wandb

    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    write_everything(quiet_trainer(logger=logger))
    wandb.finish()
    run = WandbRun(tmp_path)
    ((step, picture),) = run.rows("norms/heat map")
    assert (step, picture["_type"]) == (7, "images/separated")
    ((step, table),) = run.rows("worst layers")
    assert (step, table["_type"], table["nrows"]) == (7, "table-file", 2)
    assert run.rows("pictures")[0][1]["_type"] == "table-file"
    cells = run.table("pictures")["data"]
    assert [row[0] for row in cells] == ["1", "<i>"]
    pictures = [row[1] for row in cells]
    assert [(p["_type"], p["width"], p["height"]) for p in pictures] == [("image-file", 64, 64), ("image-file", 70, 80)]
    assert run.rows("norm/total") == [(7, 2.5)]
    assert run.alerts == [("NaN", "in layer net.0", "WARN")]


def test_the_summary_keeps_the_latest_of_each_name_and_files_are_copied_once(tmp_path):
    logger = CSVLogger(tmp_path / "csv", name="", version="")
    trainer = quiet_trainer(logger=logger)
    log_summary(trainer, {"best": 1.5, "why": "patience"})
    log_summary(trainer, {"best": 1.25})
    assert json.loads((tmp_path / "csv/summary.json").read_text()) == {"best": 1.25, "why": "patience"}
    page = tmp_path / "report.html"
    page.write_text("<p>all well</p>")
    log_artifact(trainer, page, kind="report")
    assert (tmp_path / "csv/artifacts/report.html").read_text() == "<p>all well</p>"
    log_artifact(trainer, tmp_path / "csv/summary.json", kind="summary")
    assert not (tmp_path / "csv/artifacts/summary.json").exists(), "it is in the folder already"


def test_no_logger_is_fine_and_loads_no_wandb():
    before = "wandb" in sys.modules
    write_everything(quiet_trainer(logger=False))
    assert ("wandb" in sys.modules) == before


def test_what_is_no_picture_is_said_and_a_flat_or_broken_one_is_black(tmp_path):
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    with pytest.warns(UserWarning, match=r"a picture in a table must be .* got shape \(5, 2, 2\)"):
        log_table(trainer, "bad", ["x"], [[torch.zeros(5, 2, 2)]])
    log_table(trainer, "odd", ["x"], [[torch.full((2, 2), 3.0)], [torch.tensor([[1.0, float("nan")], [2.0, 3.0]])]])
    flat, broken = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "tables/odd-step000000").iterdir()))
    assert flat.max() == 0
    assert broken[::32, ::32].tolist() == [[0, 0], [128, 255]]


class Remote(Logger):
    """Writes to no folder."""

    name, version, save_dir = "remote", "0", None

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs): ...


def test_a_logger_without_a_folder_gets_the_numbers_and_no_files(tmp_path):
    logger = Remote()
    trainer = quiet_trainer(logger=logger)
    write_everything(trainer)
    log_summary(trainer, {"best": 1.5})
    page = tmp_path / "report.html"
    page.write_text("<p>all well</p>")
    log_artifact(trainer, page, kind="report")
    assert logger.seen == [(7, {"norm/total": 2.5})]
    assert list(tmp_path.iterdir()) == [page]


def test_a_picture_loads_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    log_figure(quiet_trainer(logger=CSVLogger(tmp_path, name="", version="")), "curve", new_figure()[0])
    assert (tmp_path / "figures/curve-step000000.png").exists()
    assert "matplotlib.pyplot" not in sys.modules


class Broken(Logger):
    name, version, save_dir = "broken", "0", "unused"

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no network")

    def log_hyperparams(self, params, *args, **kwargs): ...


def test_a_failing_logger_is_said_once_and_the_others_go_on(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = quiet_trainer(logger=[Broken(), logger])
    with pytest.warns(UserWarning, match=r"Broken could not write metrics: no network. Training goes on"):
        log_metrics(trainer, {"a": 1.0})
    log_metrics(trainer, {"a": 2.0})
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["a,step", "1.0,0", "2.0,0"]


def test_a_pyplot_figure_is_closed():
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure()
    log_figure(quiet_trainer(logger=False), "x", figure)
    assert not plt.fignum_exists(figure.number)


def write_on_rank(rank, folder):
    logger = CSVLogger(folder / str(rank), name="", version="")
    trainer = quiet_trainer(strategy="ddp", devices=2, logger=logger)
    log_text(trainer, "who", "here")
    return torch.distributed.is_available()


def test_only_rank_zero_writes(tmp_path):
    run_ranks(write_on_rank, tmp_path)
    assert [path.parent.parent.name for path in tmp_path.glob("*/texts/*.txt")] == ["0"]
