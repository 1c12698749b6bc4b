"""Several processes in one search: joined by the folder or the storage."""

import optuna
import pytest
from search_nets import Slope, Tiny, find

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.tune import join
from lightning_tricks.tune.execution._search_record import RECORDED, space_from_json, space_to_json
from lightning_tricks.tune.execution._study import journal

optuna.logging.set_verbosity(optuna.logging.ERROR)
QUIET = {"start_method": "fork", "progress": False}


def begun(folder, trials=3, **options):
    """Leave a search after its first trial, as if it had been killed."""
    find(trials=1, folder=folder, **options)
    study = optuna.load_study(study_name=folder.name, storage=options.get("storage") or journal(folder / "journal.log"))
    study.set_user_attr(RECORDED, {**study.user_attrs[RECORDED], "trials": trials})


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_who_joins_reads_everything_from_the_study(method, tmp_path):
    begun(tmp_path / "s", data=Tiny, method=method, prune="median")
    result = join(tmp_path / "s", **QUIET)
    alone = find(data=Tiny, trials=3, folder=tmp_path / "alone", method=method)
    assert [row["lr"] for row in result.runs] == [row["lr"] for row in alone.runs]
    assert result.best_value == alone.best_value
    assert result.retrained == ()


def test_who_joins_a_search_in_stacks_trains_stacks(tmp_path):
    begun(tmp_path / "s", data=Tiny, vectorize=True)
    result = join(tmp_path / "s", **QUIET)
    assert len(list((tmp_path / "s" / "stacks").iterdir())) == 2
    alone = find(data=Tiny, trials=3, folder=tmp_path / "alone")
    assert [row["lr"] for row in result.runs] == [row["lr"] for row in alone.runs]
    assert [float(row["value"]) for row in result.runs] == pytest.approx([float(row["value"]) for row in alone.runs])


def test_storage_with_several_searches_needs_a_name(tmp_path):
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    begun(tmp_path / "a", trials=2, data=Tiny, storage=storage)
    optuna.create_study(storage=storage, study_name="no search of ours")
    assert len(join(storage, folder=tmp_path / "elsewhere", **QUIET).runs) == 2
    begun(tmp_path / "b", trials=2, data=Tiny, storage=storage)
    with pytest.raises(UserInputError, match=r"study must be .* but got None\. It holds: 'a', 'b'"):
        join(storage, **QUIET)
    with pytest.raises(UserInputError, match="holds the runs of the study 'a', not of 'b'"):
        join(storage, study="b", folder=tmp_path / "a", **QUIET)
    assert len(join(storage, study="b", folder=tmp_path / "b2", **QUIET).runs) == 2


def test_what_has_no_name_must_be_given(tmp_path):
    begun(tmp_path / "s", make_model=lambda lr, start: Slope(lr, start))
    with pytest.raises(UserInputError, match="make_model must be given"):
        join(tmp_path / "s", **QUIET)
    with pytest.raises(UserInputError, match="data must be given"):
        join(tmp_path / "s", Slope, **QUIET)
    assert len(join(tmp_path / "s", Slope, Tiny(), **QUIET).runs) == 3
    find(trials=1, folder=tmp_path / "own", data=Tiny, method=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(UserInputError, match="method is a sampler of your own"):
        join(tmp_path / "own", **QUIET)
    find(trials=1, folder=tmp_path / "pruner", data=Tiny, prune=optuna.pruners.NopPruner())
    with pytest.raises(UserInputError, match="prune is a pruner of your own"):
        join(tmp_path / "pruner", **QUIET)


def test_larger_budget_is_noted(tmp_path):
    for trials in (1, 3, 2):
        find(data=Tiny, trials=trials, folder=tmp_path / "s")
    assert len(join(tmp_path / "s", **QUIET).runs) == 3
    study = optuna.load_study(study_name="s", storage=journal(tmp_path / "s" / "journal.log"))
    assert study.user_attrs[RECORDED]["trials"] == 3


def test_nothing_to_join_is_a_sentence(tmp_path):
    with pytest.raises(UserInputError, match=r"holds no journal\.log"):
        join(tmp_path)
    with pytest.raises(UserInputError, match=r"the storage postgresql://.* cannot be used"):
        join("postgresql://nobody@127.0.0.1:1/x")
    journal(tmp_path / "journal.log")
    (tmp_path / "journal.log").touch()
    with pytest.raises(UserInputError, match="It holds: none"):
        join(tmp_path)


def made_up(trial):
    return {"lr": trial.suggest_float("lr", 0, 1)}


def test_space_survives_json():
    space = {
        "lr": lt.Float(1e-5, 1, log=True, window=(1e-3, 1e-1)),
        "momentum": lt.Float(0, 0.9, step=0.3),
        "width": lt.Int(8, 512, log=True),
        "act": lt.Choice(["relu", None, True, 3]),
    }
    assert space_from_json(space_to_json(space)) == space
    assert space_from_json(space_to_json(made_up)) is made_up
