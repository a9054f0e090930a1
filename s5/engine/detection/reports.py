"""The files that report what a detector finds and how well: scores, tables and detections as text."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s5.data.oriented.text import write_detections
from s5.engine.detection.collector import DetectionCollector
from s5.engine.detection.metric import AT_50, AT_75, DetectionMetric
from s5.engine.launch import LaunchError
from s5.engine.reports import SCORES_FILE, number_cell, summary_table, write_csv, write_json

logger = logging.getLogger(__name__)

SUMMARY = ("mAP50", "mAP75", "mAP50:95", "mAP50_area", "windows.mAP50")
TABLE = "{}_classes.csv"
PICTURES = "pictures/{}_*_000000.jpg"  # of no step: those of a training in the same folder stay


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of a file that cannot be written which one it is, and what to do.

    Raises:
        LaunchError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}). Make room or choose "
            f"another place, and run again"
        ) from None


def remove_reports(folder: Path, parts: Sequence[str]) -> None:
    """Remove scores, tables and pictures of an earlier evaluation, perhaps of other tasks or weights.

    Args:
        folder: where they are.
        parts: that pictures may be of, such as ``val``.
    """
    for pattern in (SCORES_FILE, TABLE.format("*"), *map(PICTURES.format, parts)):
        for path in folder.glob(pattern):
            path.unlink()


def write_texts(folder: Path, collector: DetectionCollector) -> None:
    """Write ``<folder>/<task>/<image>.txt`` for each image, see :mod:`s5.data.oriented.text`."""
    for name, found in collector.detections.items():
        write_detections(folder / collector.task / f"{name}.txt", found, collector.classes)


def write_reports(
    folder: Path,
    metrics: Sequence[DetectionMetric],
    scores: Mapping[str, float],
    settings: Mapping[str, Any],
) -> None:
    """Write ``scores.json``, and of each task ``<task>_classes.csv``; log a line per task.

    Args:
        folder: where to.
        metrics: after their evaluation.
        scores: what they gave, with prefixes.
        settings: what was evaluated and how; goes into ``scores.json``.
    """
    means = {metric.task: _means(metric.task, scores) for metric in metrics}
    report = {
        metric.task: {**settings, **means[metric.task], "classes": class_scores(metric)} for metric in metrics
    }
    write_json(folder / SCORES_FILE, report)
    for metric in metrics:
        write_csv(folder / TABLE.format(metric.task), _table(metric, means[metric.task]))
    logger.info("\n%s", summary_table(means, SUMMARY))


def class_scores(metric: DetectionMetric) -> dict[str, dict[str, float]]:
    """Scores of every class in percent (NaN without objects), its objects and detections."""
    precision = metric.precision
    assert precision is not None
    columns = {
        "AP50": precision.eleven_points[:, AT_50],
        "AP75": precision.eleven_points[:, AT_75],
        "AP50:95": precision.eleven_points.mean(1),
        "AP50_area": precision.area[:, AT_50],
        "recall50": precision.recall[:, AT_50],
    }
    return {
        name: {
            **{column: float(100 * values[i]) for column, values in columns.items()},
            "objects": int(precision.objects[i]),
            "detections": int(precision.detections[i]),
        }
        for i, name in enumerate(metric.classes)
    }


def _means(task: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of a task over all classes."""
    own = {
        name.removeprefix(f"{task}/"): value for name, value in scores.items() if name.startswith(f"{task}/")
    }
    return {name: value for name, value in own.items() if not name.startswith("AP50.")}


def _table(metric: DetectionMetric, means: Mapping[str, float]) -> list[list[object]]:
    """A line per class and one of the means."""
    rows = class_scores(metric)
    columns = list(next(iter(rows.values())))
    counts = ("objects", "detections")
    last = [
        sum(row[name] for row in rows.values()) if name in counts else means.get(f"m{name}", float("nan"))
        for name in columns
    ]
    lines = {**{name: list(row.values()) for name, row in rows.items()}, "mean": last}
    table: list[list[object]] = [["class", *columns]]
    return table + [[name, *map(number_cell, values)] for name, values in lines.items()]
