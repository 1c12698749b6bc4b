"""Private names of other packages that the code uses are written down, so that an upgrade of theirs is looked at."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples, and `os._exit`
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}


def private(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"_[A-Za-z]\w*", name))


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file of ours gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used(tree: ast.AST) -> Iterator[str]:
    """Private names that a file reads or sets on something, and private parts of modules that it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
            yield from (arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant))
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("lightning_tricks", "__future__")):
            yield from str(node.module).split(".")
            yield from (alias.name for alias in node.names)


def test_private_names_of_other_packages_are_listed_in_the_design():
    trees = [ast.parse(file.read_text()) for file in (ROOT / "lightning_tricks").rglob("*.py")]
    ours = {name for tree in trees for name in defined(tree)}
    theirs = {name for tree in trees for name in used(tree) if private(name)} - ours - PUBLIC_ALL_THE_SAME
    page = (ROOT / "docs" / "design.md").read_text()
    section = page.split("## Private names of other packages")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(_\w+)`", section))
    assert theirs - listed == set(), "the code uses names that docs/design.md does not list"
    assert listed - theirs == set(), "docs/design.md lists names that the code no longer uses"
