"""Every public name exists, is documented with an example that runs, and is known to editors."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_ranks

import lightning_tricks as lt

NAMES = [name for name in lt.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_a_running_example(name):
    thing = getattr(lt, name)
    assert thing.__doc__, f"{name} has no docstring"
    examples = doctest.DocTestParser().get_examples(thing.__doc__)
    assert examples, f"{name} has no example"
    assert not all(example.options.get(doctest.SKIP) for example in examples), f"no example of {name} runs"


def test_editors_see_the_same_names():
    tree = ast.parse(Path(lt.__file__).read_text())
    seen = {
        (alias.asname, node.module.split(".")[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lightning_tricks.") and node.level == 0
        for alias in node.names
    }
    assert seen - {("__version__", "_version")} == set(lt._SUBPACKAGE_OF.items())


def test_importing_loads_nothing_heavy():
    code = "import sys, lightning_tricks; print({'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def touch_all(rank):
    """In a process that has imported every subpackage and used nothing."""
    before = "optuna" in sys.modules
    sys.modules["optuna"] = None
    with pytest.raises(ImportError) as absent:
        _ = lt.CoarseToFineSampler
    del sys.modules["optuna"]
    names = [getattr(lt, name) for name in NAMES]
    return before, str(absent.value), len(names), "optuna" in sys.modules, "wandb" in sys.modules


def test_wandb_is_not_imported_and_optuna_when_touched_with_its_absence_one_sentence():
    ((before, absent, *after),) = run_ranks(touch_all, world_size=1)
    assert before is False
    assert 'pip install "lightning-tricks[tune]"' in absent
    assert after == [len(NAMES), True, False]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Dropuot'"):
        lt.Dropuot  # noqa: B018
