"""The API reference: every name of `lightning_tricks.__all__`, and what each subpackage offers beside."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import lightning_tricks

SUBPACKAGES = {
    "nets": "Networks",
    "init": "Initialisation",
    "optim": "Optimizers",
    "data": "Data",
    "data.splits": "Splits",
    "data.augment": "Augmentation",
    "modules": "LightningModules",
    "callbacks": "Callbacks",
    "loggers": "Loggers",
    "uncertainty": "Uncertainty",
    "diagnosis": "Diagnosis",
    "stacked": "Many nets as one",
    "tune": "Cross-validation and search",
    "plots": "Pictures",
}


def write(folder):
    """Write one page per subpackage and a table of all names that `import lightning_tricks as lt` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    top = [name for name in lightning_tricks.__all__ if name != "__version__"]
    rows = "\n".join(
        f"   * - :py:obj:`~lightning_tricks.{name}`\n     - {_summary(name)}" for name in sorted(top, key=str.lower)
    )
    pages = "\n".join(f"   {subpackage}" for subpackage in SUBPACKAGES)
    _put(
        folder / "index.rst",
        f"{_title('API reference')}With ``import lightning_tricks as lt``, these are ``lt.NAME``:\n\n"
        f".. list-table::\n   :widths: 30 70\n\n{rows}\n\n"
        "Each subpackage has more to offer, such as every operation of augmentation and measure of uncertainty:\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{pages}\n",
    )
    for subpackage, title in SUBPACKAGES.items():
        _put(folder / f"{subpackage}.rst", _page(subpackage, title, top))


def skip_hooks(app, what, name, member, skip, options):
    """Leave out methods that only implement a hook of Lightning or torch: their meaning is told there."""
    owner = getattr(inspect.unwrap(member), "__qualname__", "").split(".")[0] if inspect.isroutine(member) else ""
    module = inspect.getmodule(inspect.unwrap(member)) if owner else None
    cls = getattr(module, owner, None) if module else None
    if not inspect.isclass(cls):
        return skip
    foreign = (base for base in cls.__mro__[1:] if not base.__module__.startswith("lightning_tricks"))
    return skip or any(name in vars(base) for base in foreign)


def _page(subpackage, title, top):
    module = import_module(f"lightning_tricks.{subpackage}")
    names = _public(module)
    first = [name for name in names if lightning_tricks._SUBPACKAGE_OF.get(name) == subpackage]
    rest = [name for name in names if name not in top]
    text = _title(title) + (inspect.getdoc(module) or "") + "\n\n"
    text += _section("Top level", ".. py:currentmodule:: lightning_tricks\n\n", "lightning_tricks", first)
    where = f"lightning_tricks.{subpackage}"
    text += f".. py:module:: {where}\n\n"
    return text + _section(f"In ``{where}``", "", where, rest)


def _section(title, head, where, names):
    things = [(name, getattr(import_module(where), name)) for name in names]
    entries = "".join(_entry(f"{where}.{name}", thing) for name, thing in things)
    return f"{title}\n{'-' * len(title)}\n\n{head}{entries}" if entries else ""


def _entry(name, thing):
    if inspect.isclass(thing):
        return f".. autoclass:: {name}\n   :members:\n\n"
    if inspect.isroutine(thing):
        return f".. autofunction:: {name}\n\n"
    shown = ", ".join(f"``{entry}``" for entry in thing) if isinstance(thing, Mapping | tuple) else f"``{thing!r}``"
    return f".. py:data:: {name.rpartition('.')[2]}\n\n   {'Keys: ' if isinstance(thing, Mapping) else ''}{shown}\n\n"


def _public(module):
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [name for name in names if _is_ours(getattr(module, name), module)]


def _is_ours(thing, module):
    if isinstance(thing, ModuleType):
        return False
    home = getattr(thing, "__module__", module.__name__) or module.__name__
    if module.__name__.endswith("splits"):  # this subpackage is one file, so what it imports shows, too
        return home == module.__name__
    return home.split(".")[:2] == module.__name__.split(".")[:2]  # what it offers again stands on the other page


def _summary(name):
    return (inspect.getdoc(getattr(lightning_tricks, name)) or "").split("\n")[0]


def _title(text):
    return f"{text}\n{'=' * len(text)}\n\n"


def _put(path, text):
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
