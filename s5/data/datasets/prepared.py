"""The label table that prepared masks were written with: stored in the journal, compared on use."""

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from s5.data.label_table import LabelTable
from s5.data.splits import Split
from s5.errors import DataError, SplitError

JOURNAL_NAME = "prepare_journal.jsonl"
_TABLE = ("classes", "values", "palette", "ignore", "ignore_colors", "color_code")


def table_facts(table: LabelTable) -> dict[str, Any]:
    """The parts of a table that determine the class of a pixel, as plain data, without names and scores."""
    mapping = table.as_mapping()
    return {f"table {key}": mapping[key] for key in _TABLE}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences as text; empty if there are none."""
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)


def require_same_table(folder: Path, table: LabelTable) -> None:
    """Refuse masks that were written with a different version of the first table of their dataset.

    Args:
        folder: Folder of the prepared dataset; journals without a table, of earlier versions, are accepted.
        table: The current first table of the dataset.

    Raises:
        DataError: The table differs; the message has the folder, the differences and the remedy.
    """
    recorded = {k: v for k, v in read_header(folder).get("facts", {}).items() if k.startswith("table ")}
    if recorded and (changes := differences(recorded, table_facts(table))):
        raise DataError(
            f"{folder}: the masks here were written with another label table {table.name!r} ({changes}). "
            "Prepare the dataset again, under another --name or after deleting this folder"
        )


def prepared_folder(split: Split) -> Path | None:
    """The prepared dataset that the first sample of a split belongs to; None if there is none."""
    try:
        path = split.sample(0).image
    except SplitError:  # reported when the samples are read
        return None
    below = (parent for parent in path.parents if parent.is_relative_to(split.root))
    return next((parent for parent in below if (parent / JOURNAL_NAME).is_file()), None)


def read_header(folder: Path) -> Mapping[str, Any]:
    """First line of the journal of a prepared dataset; empty if there is none."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            return json.loads(file.readline() or b"{}")
    except (OSError, ValueError):  # a line truncated by a kill: nothing is prepared yet
        return {}


def code_digest(function: Callable) -> str:
    """Digest of a function's code and of what it uses from its module; empty if the source is unavailable.

    Comments, docstrings, white space and quotes are excluded, so that formatting does not change it.
    """
    plain = function.__func__ if isinstance(function, MethodType) else function
    try:
        text = "\n".join(_code(plain, set()))
    except (OSError, TypeError):  # defined interactively
        return ""
    return hashlib.blake2b(re.sub(r"[\s'\"]", "", text).encode(), digest_size=8).hexdigest()


def _code(function: Callable, seen: set[str]) -> Iterator[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    yield ast.unparse(tree)
    for name in sorted({*function.__code__.co_names} - seen):
        value = function.__globals__.get(name)
        seen.add(name)
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            yield from _code(value, seen)
        elif isinstance(value, (bool, int, float, str, tuple, re.Pattern)):
            yield f"{name}={value!r}"
