"""Evaluation reports: scores as JSON and CSV, confusion matrices as CSV and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from s5.data.image_io import write_image
from s5.data.label_table import LabelTable
from s5.errors import ConfigError
from s5.ops.confusion import scores
from s5.segmentation.metrics import SegmentationMetric
from s5.training.reports import SCORES_FILE, number_cell, summary_table, write_csv, write_json

SUMMARY = ("mIoU", "mIoU_no_background", "mF1", "mAcc", "aAcc")
PER_CLASS = ("IoU", "F1", "Precision", "Recall", "Acc")

CELL_SIZES = (64, 48, 22, 10, 4)  # pixels; the largest for which the matrix fits MATRIX_SIDE is used
MATRIX_SIDE = 1100  # pixels
NUMBERS_FROM = 48  # smallest cell size with numbers, pixels
NAMES_FROM = 22  # smallest cell size with class names, pixels
MARGIN = 16  # pixels
TEXT = 15  # font size in pixels
DARK = (20, 20, 20)
GREY = (225, 225, 225)  # classes without a pixel
LOW, HIGH = np.array([255.0, 255.0, 255.0]), np.array([8.0, 69.0, 148.0])  # 0 % and 100 %


def check_classes(trained: Mapping[str, LabelTable], data: Mapping[str, LabelTable]) -> None:
    """Reject data whose tasks or classes differ from those that a model was trained for.

    Raises:
        ConfigError: A task is unknown to the model or has other classes; names the task and both lists.
    """
    unknown = [task for task in data if task not in trained]
    if unknown:
        raise ConfigError(
            f"the checkpoint has no task {', '.join(unknown)}; it has {', '.join(trained)}. Choose from "
            f"them with --tasks"
        )
    for task, table in data.items():
        expected, configured = trained[task].classes, table.classes
        if expected != configured:
            raise ConfigError(
                f"task {task}: the checkpoint was trained for the classes {', '.join(expected)}, the "
                f"configuration has {', '.join(configured)}"
            )


def write_reports(
    folder: Path, metrics: Sequence[SegmentationMetric], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the scores of every task: `scores.json`, and per task two CSV files and a picture.

    Args:
        folder: Output folder.
        metrics: Metrics that have been evaluated.
        settings: What was evaluated and with which settings, by task, for `scores.json`.
    """
    report = {}
    for metric in metrics:
        matrix, table = metric.matrix, metric.table
        means = mean_scores(metric)
        report[metric.task] = {
            **settings[metric.task],
            **means,
            "classes": class_table(matrix, table.classes),
        }
        write_class_csv(folder / f"{metric.task}_classes.csv", matrix, table.classes)
        write_confusion_csv(folder / f"{metric.task}_confusion.csv", matrix, table.classes)
        title = f"{metric.task}: mIoU {means['mIoU']:.2f}, in percent of each true class"
        picture = draw_confusion(matrix, table.classes, title)
        write_image(folder / f"{metric.task}_confusion.png", picture)
    write_json(folder / SCORES_FILE, report)


def mean_scores(metric: SegmentationMetric) -> dict[str, float]:
    """Scores over all classes, in percent."""
    values = scores(metric.matrix, metric.table.background)
    return {name: 100 * value for name, value in values.items() if isinstance(value, float)}


def summary(metrics: Sequence[SegmentationMetric]) -> str:
    """Format a table with a row per task and their mean, see :func:`~s5.training.reports.summary_table`."""
    return summary_table({metric.task: mean_scores(metric) for metric in metrics}, SUMMARY)


def class_table(matrix: Tensor, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of every class in percent (NaN where undefined), and its true and predicted pixel counts."""
    values = scores(matrix)
    true, predicted = matrix.sum(1).tolist(), matrix.sum(0).tolist()
    return {
        name: {
            **{measure: 100 * values[measure][i] for measure in PER_CLASS},  # type: ignore[literal-required]
            "pixels": true[i],
            "predicted_pixels": predicted[i],
        }
        for i, name in enumerate(classes)
    }


def write_class_csv(path: Path, matrix: Tensor, classes: Sequence[str]) -> None:
    """Write one row per class: scores in percent (empty where undefined) and pixel counts."""
    columns = (*PER_CLASS, "pixels", "predicted_pixels")
    rows = class_table(matrix, classes).items()
    write_csv(path, [["class", *columns], *([name, *map(number_cell, row.values())] for name, row in rows)])


def write_confusion_csv(path: Path, matrix: Tensor, classes: Sequence[str]) -> None:
    """Write pixel counts: a row per true class, a column per predicted class."""
    rows = zip(classes, matrix.tolist(), strict=True)
    write_csv(path, [["true \\ predicted", *classes], *([name, *row] for name, row in rows)])


def draw_confusion(matrix: Tensor, classes: Sequence[str], title: str) -> np.ndarray:
    """Draw a confusion matrix; every row (true class) adds up to 100 %.

    Args:
        matrix: Pixel counts (K, K), rows = ground truth.
        classes: Names, any script.
        title: First line of the picture.

    Returns:
        Uint8 (H, W, 3) RGB. Numbers, then names are omitted for many classes.
    """
    counts = matrix.double().numpy()
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)
    cell = next((size for size in CELL_SIZES if size * len(classes) <= MATRIX_SIDE), CELL_SIZES[-1])
    names = list(classes) if cell >= NAMES_FROM else [""] * len(classes)
    names_width = max(_text_width(name) for name in names) + MARGIN
    left = 2 * MARGIN + TEXT + names_width
    top = 2 * (MARGIN + TEXT) + names_width + MARGIN
    side = cell * len(classes)
    width = max(left + side + MARGIN, 2 * MARGIN + _text_width(title))
    canvas = np.full((top + side + MARGIN, width, 3), 255, np.uint8)
    canvas[top : top + side, left : left + side] = _cells(shares, cell)
    _text(canvas, title, MARGIN, MARGIN + TEXT)
    _text(canvas, "predicted", left, 2 * (MARGIN + TEXT))
    _upright(canvas, "ground truth", MARGIN, top + side)
    for i, name in enumerate(names):
        middle = i * cell + (cell + TEXT) // 2 - 2
        _text(canvas, name, left - MARGIN // 2 - _text_width(name), top + middle)
        _upright(canvas, name, left + middle - TEXT, top - MARGIN // 2)
    if cell >= NUMBERS_FROM:
        _numbers(canvas[top:, left:], shares, cell)
    return canvas


def _cells(shares: np.ndarray, cell: int) -> np.ndarray:
    colors = LOW + np.nan_to_num(shares)[..., None] * (HIGH - LOW)
    colors[np.isnan(shares)] = GREY
    cells = colors.round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    if cell >= NAMES_FROM:  # lines between the cells
        cells[::cell] = cells[:, ::cell] = GREY
    return cells


def _numbers(canvas: np.ndarray, shares: np.ndarray, cell: int) -> None:
    for row, column in np.argwhere(shares >= 0.0005):
        share = shares[row, column]
        text = "100" if share >= 0.9995 else f"{100 * share:.1f}"
        x = column * cell + (cell - _text_width(text)) // 2
        color = (255, 255, 255) if share > 0.5 else DARK
        _text(canvas, text, x, row * cell + (cell + TEXT) // 2 - 2, color)


def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")  # ships with OpenCV and, unlike the Hershey fonts, draws all scripts


def _text_width(text: str) -> int:
    if not text:
        return 0
    x, _, width, _ = cv2.getTextSize((1 << 14, 64), text, (0, 0), _font(), TEXT, 400)
    return x + width


def _text(canvas: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int] = DARK) -> None:
    """Write text rightwards from (x, y) on its baseline."""
    patch = np.ascontiguousarray(canvas)
    cv2.putText(patch, text, (int(x), int(y)), color, _font(), TEXT, 400)
    if patch is not canvas:
        canvas[:] = patch


def _upright(canvas: np.ndarray, text: str, x: int, y: int) -> None:
    """Write text upwards from (x, y), its lower left corner."""
    if not text:
        return
    width, height = _text_width(text) + 2, TEXT + 8
    strip = np.full((height, width, 3), 255, np.uint8)
    _text(strip, text, 0, TEXT)
    turned = np.rot90(strip)
    canvas[y - width : y, x : x + height] = np.minimum(canvas[y - width : y, x : x + height], turned)
