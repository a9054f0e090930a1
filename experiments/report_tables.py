"""Tables of scores, for the reports that the scripts beside this file write."""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from s5.data.label_table import LabelTable
from s5.data.masks import read_ids
from s5.data.splits import Split
from s5.ops.confusion import confusion_matrix, scores
from s5.training.reports import text_table

MEAN = "mIoU"


def markdown_table(columns: Mapping[str, Mapping[str, str]], rows: Sequence[str]) -> list[str]:
    """Lines of a table that reads well both raw and rendered.

    Args:
        columns: For every title the cells by row.
        rows: Titles of the rows, in order.
    """
    cells = [[row, *(column[row] for column in columns.values())] for row in rows]
    return text_table(["", *columns], cells, markdown=True).splitlines()


def percent(value: float | None) -> str:
    """A score; None and NaN are those of a class that is neither there nor predicted."""
    return "absent" if value is None or math.isnan(value) else f"{value:.1f}"


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of scores, of one the score alone; undefined ones are left out and said."""
    known = [value for value in values if value is not None]
    if not known:
        return "absent"
    text = percent(statistics.mean(known))
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.1f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} runs)"


def majority_scores(split: Split, table: LabelTable) -> tuple[str, dict[str, float]]:
    """The most frequent class of a split, and IoU by class and mIoU, percent, of giving it to every pixel."""
    masks = [read_ids(sample.mask, table).reshape(-1) for sample in split if sample.mask]
    target = torch.cat([torch.from_numpy(mask) for mask in masks])
    majority = int(torch.bincount(target, minlength=table.num_classes)[: table.num_classes].argmax())
    result = scores(confusion_matrix(torch.full_like(target, majority), target, table.num_classes))
    by_class = dict(zip(table.classes, result["IoU"], strict=True)) | {MEAN: result["mIoU"]}
    return table.classes[majority], {name: 100 * value for name, value in by_class.items()}
