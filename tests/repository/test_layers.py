"""The order of the folders of `s5/`, which docs/architecture.md draws: each imports only those before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

BASE = ("errors", "ranges", "launch", "command")  # modules
# Folders of one row do not import each other; all may import the base.
ROWS = (
    ("ops",),
    ("compat",),
    ("backbones",),
    ("checkpoints", "data"),
    ("training",),
    ("prediction",),
    ("segmentation", "detection"),
    ("curate",),
)
# Commands that stand on everything, also on the Python interface `s5/api.py`.
TOP = {"doctor", "export"}
ROW = {folder: row for row, folders in enumerate(ROWS) for folder in folders}
PRODUCTS = "S4_Pretrain", "Semantic_Segmentation", "Object_Detection"


@cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All import statements of a file, at any depth."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything of `s5` that a file imports."""
    for node in imports(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not node.level, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "s5")


def test_every_folder_has_its_row(repository: Path) -> None:
    folders = {path.parent.name for path in repository.glob("s5/*/__init__.py")}
    assert folders == ROW.keys() | TOP


@pytest.mark.parametrize("folder", ROW)
def test_a_folder_imports_only_those_before_it(folder: str, repository: Path) -> None:
    files = sorted((repository / "s5" / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(repository)}:{line}: {name}"
        for path in files
        for line, name in imported(path)
        if (other := name.split(".")[1]) not in (folder, *BASE) and ROW.get(other, len(ROWS)) >= ROW[folder]
    ]
    assert not wrong


def test_facts_of_datasets_are_below_everything_that_asks_for_them(repository: Path) -> None:
    """What `data/datasets/` imports, and all of `data/oriented/`, does not import a dataset."""
    package, facts = repository / "s5/data", "s5.data.datasets"
    uses = {
        ".".join(path.relative_to(repository).with_suffix("").parts): {name for _, name in imported(path)}
        for path in package.rglob("*.py")
    }
    below = {module for module in uses if module.startswith("s5.data.oriented.")}
    reached = [name for module in uses if module.startswith(facts) for name in uses[module]]
    while reached:
        module = reached.pop()
        module = module if module in uses else module.rpartition(".")[0]
        if module in uses and not module.startswith(facts) and module not in below:
            below.add(module)
            reached += uses[module]
    assert {"s5.data.label_table", "s5.data.folders"} < below
    wrong = [(m, name) for m in below for name in uses[m] if name.startswith(facts)]
    assert not wrong


def test_the_base_imports_nothing_above_it(repository: Path) -> None:
    """When it is imported, that is: functions may."""
    modules = ", ".join(f"s5.{module}" for module in BASE)
    code = f"import sys, {modules}; print([m for m in sys.modules if m.startswith('s5.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.split(".")[1] for name in ast.literal_eval(loaded.stdout)}
    assert {*BASE} <= names <= {*BASE, "compat"}  # the package itself installs the operators of mmcv


def test_trees_do_not_import_each_other(repository: Path) -> None:
    for tree in PRODUCTS:
        for path in (repository / tree).rglob("*.py"):
            for node in imports(path):
                module = getattr(node, "module", None) or ""
                assert module.split(".")[0] not in PRODUCTS, path


def test_nothing_in_the_package_imports_what_stands_beside_it(repository: Path) -> None:
    outside = {"scenes", "experiments", "benchmarks", "tests", *PRODUCTS}
    for path in (repository / "s5").rglob("*.py"):
        for node in imports(path):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & outside, path
