"""Every option of EarlyStopping and ReduceLROnPlateau reaches the nets of a stack, or is refused by its name."""

import inspect

import pytest

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.learning_rate._decision import PlateauDecision
from lightning_tricks.callbacks.learning_rate._lr_scale import Reducer
from lightning_tricks.callbacks.stopping._decision import StoppingDecision
from lightning_tricks.stacked._stopping import REFUSED, Rules

DECIDED = {lt.EarlyStopping: [StoppingDecision], lt.ReduceLROnPlateau: [PlateauDecision, Reducer]}
# What a stack does itself, and how.
ELSEWHERE = {
    lt.EarlyStopping: {
        "check_finite": "becomes nan= of the decision",
        "verbose": "each new best is said",
        "strict": "a metric that the stack cannot compute is an error",
        "log_rank_zero_only": "a stack has one process",
        "restore_best": "Rules.restores",
    },
    lt.ReduceLROnPlateau: {"strict": "a metric that the stack cannot compute is an error"},
}
OTHER_VALUES = {
    "unit": "minutes",
    "nan": "restore",
    "restore_best": True,
    "restore_optimizer": True,
    "keep": "disk",
    "dirpath": "somewhere",
    "check_on_train_epoch_end": True,
}


def options_of(function):
    return set(inspect.signature(function).parameters) - {"self"}


@pytest.mark.parametrize("callback", DECIDED)
def test_every_option_reaches_the_stack_or_is_refused(callback):
    decided = set().union(*map(options_of, DECIDED[callback]))
    assert options_of(callback) == (options_of(callback) & decided) | set(REFUSED[callback]) | set(ELSEWHERE[callback])
    assert not set(ELSEWHERE[callback]) & set(REFUSED[callback])


@pytest.mark.parametrize(("callback", "name"), [(callback, name) for callback in REFUSED for name in REFUSED[callback]])
def test_what_a_stack_cannot_follow_is_refused_by_name(callback, name):
    refused = callback("val_loss", **{name: OTHER_VALUES[name]})
    with pytest.raises(UserInputError, match=rf"{callback.__name__}\({name}=.* cannot be used for one net of a stack"):
        Rules([refused], "val_loss")
    Rules([callback("val_loss", **{name: REFUSED[callback][name][0][0]})], "val_loss")


@pytest.mark.parametrize("callback", REFUSED)
def test_the_defaults_are_followed(callback):
    Rules([callback("val_loss")], "val_loss")
