"""A search over PostgreSQL, on request: it needs a server and a driver (``pip install "psycopg[binary]"``).

Run: ``LIGHTNING_TRICKS_POSTGRES=postgresql+psycopg://user@localhost/database pytest -n0 tests/test_search_postgres.py``
"""

import os
import uuid
from multiprocessing import get_context

import optuna
import pytest
from search_nets import Tiny, find

from lightning_tricks._base import UserInputError
from lightning_tricks.tune import join

URL = os.environ.get("LIGHTNING_TRICKS_POSTGRES")
pytestmark = pytest.mark.skipif(URL is None, reason="LIGHTNING_TRICKS_POSTGRES names no server")
optuna.logging.set_verbosity(optuna.logging.ERROR)


def take_part(name, folder):
    join(URL, study=name, folder=folder, start_method="fork", progress=False)


def test_machines_without_a_common_folder_share_a_search(tmp_path):
    name = f"s-{uuid.uuid4().hex[:8]}"
    begin = {"data": Tiny, "method": "coarse_to_fine", "storage": URL, "study": name, "folder": tmp_path / "one"}
    find(trials=1, **begin | {"study": f"{name}-short", "folder": tmp_path / "short"})  # the tables are there
    other = get_context("fork").Process(target=find, kwargs={**begin, "trials": 20})
    other.start()
    while name not in [s.study_name for s in optuna.get_all_study_summaries(URL)]:
        assert other.is_alive()
    study = optuna.load_study(study_name=name, storage=URL)
    while "lightning_tricks:recorded" not in study.user_attrs:
        assert other.is_alive()
    take_part(name, tmp_path / "two")
    other.join(120)
    trials = optuna.load_study(study_name=name, storage=URL).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 20
    alone = find(data=Tiny, method="coarse_to_fine", trials=20, folder=tmp_path / "alone")
    assert sorted(t.params["lr"] for t in trials) == pytest.approx(sorted(t.params["lr"] for t in alone.study.trials))
    mine = [len(list((tmp_path / folder).glob("run-*/result.json"))) for folder in ("one", "two")]
    assert sum(mine) == 20
    assert min(mine) > 0


def test_other_searches_and_missing_ones_are_refused(tmp_path):
    name = f"s-{uuid.uuid4().hex[:8]}"
    find(trials=1, storage=URL, study=name, folder=tmp_path / "one")
    with pytest.raises(UserInputError, match="is to minimize, but this search is to maximize"):
        find(trials=1, mode="max", storage=URL, study=name, folder=tmp_path / "one")
    with pytest.raises(UserInputError, match="study must be the name of a search"):
        join(URL, study="none")
