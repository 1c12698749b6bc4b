"""A subpackage imports only those that the design allows it to, by their public API; no cycles, no crowded folders."""

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
MAY_IMPORT["doctor"] = {"_base", "callbacks"}
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


@pytest.mark.parametrize("subpackage", sorted(MAY_IMPORT))
def test_subpackage_imports_only_what_it_may(subpackage):
    files = sorted((PACKAGE / subpackage).rglob("*.py"))
    assert files, f"subpackage {subpackage} is missing"
    for file in files:
        for name in imported_modules(ast.parse(file.read_text())):
            root, *rest = name.split(".")
            assert root != "pytorch_lightning", f"{file}: import lightning.pytorch instead"
            if root == "lightning_tricks":
                assert rest[0] in MAY_IMPORT[subpackage] | {subpackage, "_version", "__version__"}, (
                    f"{file} imports {name}"
                )


@pytest.mark.parametrize("subpackage", sorted(MAY_IMPORT))
def test_other_subpackages_are_entered_by_their_public_api(subpackage):
    inside = []
    for file in sorted((PACKAGE / subpackage).rglob("*.py")):
        for name in imported_modules(ast.parse(file.read_text())):
            root, *rest = name.split(".")
            if root == "lightning_tricks" and rest[0] != subpackage and any(part.startswith("_") for part in rest[1:]):
                inside.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not [line for line in inside if not line.endswith("__version__")]


def test_every_subpackage_is_listed():
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == set(MAY_IMPORT)


def test_every_stated_shape_is_checked(pytestconfig):
    checked = {name.strip() for name in pytestconfig.getoption("jaxtyping_packages").split(",")[:-1]}
    files = [path for path in PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()]
    stating = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files}
    assert checked == stating, "pyproject.toml lists the modules that state shapes"


def file_of(name: str) -> Path | None:
    """The file that a dotted name stands for: itself, or the module that holds it."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return file_of(name.rpartition(".")[0]) if "." in name else None


def typing_only(tree: ast.AST) -> set[int]:
    """Imports that only a type checker sees, by id."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}


def test_no_file_imports_one_that_imports_it():
    """Also not within functions. A subpackage's `__init__.py` only gathers names and is not counted."""
    arrows: dict[Path, set[Path]] = {}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        unseen = typing_only(tree)
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) not in unseen]
        names = [name for node in nodes for name in imported_modules(node)]
        found = {file_of(name) for name in names if name.startswith("lightning_tricks")} - {None, file}
        arrows[file] = {target for target in found if target.name != "__init__.py"}
    while arrows:
        ends = [file for file, targets in arrows.items() if not targets & arrows.keys()]
        assert ends, f"a cycle among {sorted(str(file.relative_to(PACKAGE)) for file in arrows)}"
        for file in ends:
            del arrows[file]


def test_no_folder_is_crowded():
    for folder in {file.parent for file in PACKAGE.rglob("*.py")}:
        files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= 14, f"{folder.relative_to(PACKAGE)} has {len(files)} files: group a family in a folder"
