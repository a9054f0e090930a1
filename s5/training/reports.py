"""Files and tables that report scores."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

from s5.data.errors import printable
from s5.data.files import write_bytes

SCORES_FILE = "scores.json"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report; JSON has no NaN, an undefined score is null."""
    text = json.dumps(_encodable(report), indent=1, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write a table for spreadsheets."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


def number_cell(value: float) -> str:
    """A number for :func:`write_csv`; empty if undefined."""
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4f}"


def summary_table(scores: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """A table with a line per task, and the mean over several; says where a task has no score.

    Args:
        scores: in percent, by task and name.
        names: the columns; those that no task has are left out.
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
    width = max(map(len, rows)) + 2
    lines = [f"{'task':<{width}}" + "".join(f"{name:>{len(name) + 3}}" for name in columns)]
    for task, row in rows.items():
        cells = (f"{row[name]:.2f}" if name in row else "" for name in columns)
        lines.append(
            f"{task:<{width}}"
            + "".join(f"{c:>{len(name) + 3}}" for c, name in zip(cells, columns, strict=True))
        )
    if notes:
        lines.append(f"(mean where there is a score: {', '.join(notes)})")
    return "\n".join(lines)


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with null for NaN, and paths that are not UTF-8 escaped."""
    if isinstance(value, Mapping):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and math.isnan(value) else value


SCALARS_FILE = "log.jsonl"


class JsonLinesBackend(BaseVisBackend):
    """Appends every record of scalars as one line to ``log.jsonl``; a resumed run continues the file."""

    def _init_env(self) -> None:
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)

    @property
    def experiment(self) -> Path:
        """The file."""
        return Path(self._save_dir) / SCALARS_FILE

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Pictures are written by their hook."""

    def add_scalar(self, name: str, value: float, step: int = 0, **kwargs: Any) -> None:
        """Append one value."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Append the values; NaN (a class that does not occur) becomes null; ``file_path`` is not used."""
        values = {name: float(value) for name, value in scalar_dict.items()}
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        with self.experiment.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def build_visualizer(work_dir: Path, name: str) -> Visualizer:
    """A visualizer that writes ``work_dir/log.jsonl`` and ``work_dir/tensorboard``."""
    backends = [JsonLinesBackend(str(work_dir)), TensorboardVisBackend(str(work_dir / "tensorboard"))]
    return Visualizer(name=name, vis_backends=backends, save_dir=str(work_dir))
