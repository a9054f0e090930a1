"""Files and tables of scores."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prettytable import PrettyTable, TableStyle

from s5.data.files import write_bytes
from s5.errors import printable

SCORES_FILE = "scores.json"
SUMMARY_FILE = "final_metrics.json"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, with null for undefined (NaN) scores."""
    text = json.dumps(_encodable(report), indent=1, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


def number_cell(value: float) -> str:
    """Format a number for :func:`write_csv`; empty if it is NaN."""
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """A table, with rules if it is Markdown: the first column to the left, the others to the right."""
    table = PrettyTable(header, border=False, align="r")
    if markdown:
        table.set_style(TableStyle.MARKDOWN)
    table.align[header[0]] = "l"
    table.add_rows([list(row) for row in rows])
    return table.get_string()


def summary_table(scores: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """Format a table with a row per task and, for several tasks, their mean; notes missing scores below.

    Args:
        scores: Scores in percent by task and name.
        names: The columns; columns that no task has are left out.
    """
    rows = dict(scores)
    columns = [name for name in names if any(name in row for row in rows.values())]
    notes = []
    if len(rows) > 1:
        shared = [name for name in columns if all(name in row for row in rows.values())]
        known = {name: [row[name] for row in rows.values() if not math.isnan(row[name])] for name in shared}
        counts = {name: len(values) for name, values in known.items() if len(values) < len(rows)}
        notes = [f"{name} of {count} of {len(rows)} tasks" for name, count in counts.items()]
        rows["mean"] = {name: fmean(values) if values else math.nan for name, values in known.items()}
    cells = [
        [task, *(f"{row[name]:.2f}" if name in row else "" for name in columns)] for task, row in rows.items()
    ]
    note = f"\n(mean over tasks with a score: {', '.join(notes)})" if notes else ""
    return text_table(["task", *columns], cells) + note


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace NaN by None and escape paths that are not UTF-8."""
    if isinstance(value, Mapping):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and math.isnan(value) else value
