"""A room imports only the rooms that the design allows it to."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lightning_tricks"
MAY_IMPORT = {
    "_base": set(),
    "nets": {"_base"},
    "init": {"_base"},
    "optim": {"_base"},
    "uncertainty": {"_base"},
    "data": {"_base", "plots"},
    "diagnosis": {"_base"},
    "plots": {"_base"},
    "modules": {"_base", "nets", "optim", "uncertainty", "plots"},
    "loggers": {"_base"},
    "callbacks": {"_base", "init", "uncertainty", "diagnosis", "loggers", "plots"},
    "stacked": {"_base", "nets", "modules", "callbacks"},
    "tune": {"_base", "data", "callbacks", "diagnosis", "loggers", "modules", "nets", "plots", "stacked"},
}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "cli"}


def imported_modules(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_room_imports_only_what_it_may(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files, f"room {room} is missing"
    for file in files:
        for name in imported_modules(ast.parse(file.read_text())):
            root, *rest = name.split(".")
            assert root != "pytorch_lightning", f"{file}: import lightning.pytorch instead"
            if root == "lightning_tricks":
                assert rest[0] in MAY_IMPORT[room] | {room, "_version", "__version__"}, f"{file} imports {name}"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_other_subpackages_are_entered_by_their_public_api(room):
    inside = []
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for name in imported_modules(ast.parse(file.read_text())):
            root, *rest = name.split(".")
            if root == "lightning_tricks" and rest[0] != room and any(part.startswith("_") for part in rest[1:]):
                inside.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not [line for line in inside if not line.endswith("__version__")]


def test_every_room_is_listed():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)


def test_every_stated_shape_is_checked(pytestconfig):
    checked = {name.strip() for name in pytestconfig.getoption("jaxtyping_packages").split(",")[:-1]}
    files = [path for path in PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()]
    stating = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files}
    assert checked == stating, "pyproject.toml lists the modules that state shapes"
