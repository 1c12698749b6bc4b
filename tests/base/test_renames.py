"""Every argument that got another name still takes its old one, and says so."""

import inspect
import re

import pytest

import lightning_tricks as lt
from lightning_tricks._base import RENAMED_ARGUMENTS, UserInputError, accepts_old_names

PAIRS = [(owner, old, new) for owner, names in RENAMED_ARGUMENTS.items() for old, new in names.items()]


def parameters(owner):
    return inspect.signature(getattr(lt, owner)).parameters


@pytest.mark.parametrize(("owner", "old", "new"), PAIRS)
def test_the_public_signature_has_the_new_name_only(owner, old, new):
    assert new in parameters(owner)
    assert old not in parameters(owner)


@pytest.mark.parametrize(("owner", "old", "new"), PAIRS)
def test_the_old_name_works_and_names_the_new_one(owner, old, new):
    def call(**arguments):
        return arguments

    wrapped = accepts_old_names(owner)(call)
    with pytest.warns(DeprecationWarning, match=rf"{owner}\({old}=\) is called {new}= now") as said:
        assert wrapped(**{old: 1}) == {new: 1}
    assert said[0].filename == __file__
    both = f"{owner} got {new}= and {old}=, its old name. Give {new}= only."
    with pytest.raises(UserInputError, match=re.escape(both)):
        wrapped(**{old: 1, new: 1})
    assert wrapped(**{new: 1}) == {new: 1}


@pytest.mark.parametrize(("owner", "old", "new"), PAIRS)
def test_the_owner_itself_takes_the_old_name(owner, old, new):
    function = getattr(lt, owner)
    with pytest.raises(UserInputError, match=f"got {new}= and {old}="):
        function(**{old: None, new: None})


def test_a_real_call():
    with pytest.warns(DeprecationWarning, match="start_from="):
        assert lt.ReduceLROnPlateau("val_loss", after=3).rule.start_from == 3
    with pytest.warns(DeprecationWarning, match="min_delta_mode="):
        assert lt.EarlyStopping("val_loss", min_delta_kind="relative").min_delta_mode == "relative"
