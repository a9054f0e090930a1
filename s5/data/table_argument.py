"""A label table given on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from s5.data.errors import LabelError
from s5.data.label_table import LabelTable
from s5.data.labels import TABLES, get_table

HELP = f"label table: {', '.join(sorted(TABLES))}, a YAML file or a mapping"
"""What the argument may be."""


def parse_table(text: str, default_name: str | None = None) -> LabelTable:
    """A known table's name, a JSON or YAML mapping, or a file that holds one.

    Args:
        text: the argument.
        default_name: name of a table whose mapping has none.

    Raises:
        LabelError: no such table or file, not YAML, or a table that contradicts itself.
    """
    spec: Any = text
    try:
        if text.lstrip().startswith("{"):
            spec = yaml.safe_load(text)
        elif text.endswith((".yaml", ".yml", ".json")):
            spec = yaml.safe_load(Path(text).read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise LabelError(f"label table {text!r} cannot be read: {error}") from error
    return get_table(spec, default_name)
