"""Tables of scores for the reports of the experiments."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from s5.data.files import write_bytes
from s5.data.label_table import LabelTable
from s5.data.masks import read_ids
from s5.data.splits import Split
from s5.ops.confusion import confusion_matrix, scores
from s5.training.reports import text_table

MEAN = "mIoU"


def markdown_table(columns: Mapping[str, Mapping[str, str]], rows: Sequence[str]) -> list[str]:
    """Lines of a Markdown table with aligned columns.

    Args:
        columns: Cells of each column, by its title.
        rows: Titles of the rows, in order.
    """
    cells = [[row, *(column[row] for column in columns.values())] for row in rows]
    return text_table(["", *columns], cells, markdown=True).splitlines()


def add_table(path: Path, text: str) -> None:
    """Add a table to a report, unless it has it already."""
    old = path.read_text("utf-8") if path.exists() else ""
    if text not in old:
        write_bytes(path, f"{old}\n{text}".lstrip().encode())


def percent(value: float | None) -> str:
    """Format a score; None and NaN mean that the class is neither present nor predicted."""
    return "absent" if value is None or math.isnan(value) else f"{value:.1f}"


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, or a single score alone; undefined scores are excluded and mentioned."""
    known = [value for value in values if value is not None]
    if not known:
        return "absent"
    text = percent(statistics.mean(known))
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.1f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} runs)"


def majority_scores(split: Split, table: LabelTable) -> tuple[str, dict[str, float]]:
    """The most frequent class of a split, and the IoU by class and mIoU (percent) of always predicting it."""
    masks = [read_ids(sample.mask, table).reshape(-1) for sample in split if sample.mask]
    target = torch.cat([torch.from_numpy(mask) for mask in masks])
    majority = int(torch.bincount(target, minlength=table.num_classes)[: table.num_classes].argmax())
    result = scores(confusion_matrix(torch.full_like(target, majority), target, table.num_classes))
    by_class = dict(zip(table.classes, result["IoU"], strict=True)) | {MEAN: result["mIoU"]}
    return table.classes[majority], {name: 100 * value for name, value in by_class.items()}
