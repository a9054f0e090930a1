"""Evaluation of a detector: selecting images, collecting detections, and reporting scores."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric

from s5.data.oriented.detections import Detections, write_detections
from s5.data.oriented.merge import NMS_THRESHOLD, merge_windows, parse_window_name
from s5.data.oriented.samples import whole_names
from s5.data.oriented.sources import OrientedValidation
from s5.detection.config import DetConfig
from s5.detection.metric import AT_50, AT_75, DetectionMetric, detections_of, gather
from s5.errors import ConfigError
from s5.launch import LaunchError
from s5.training.command import known_tasks
from s5.training.reports import SCORES_FILE, number_cell, summary_table, write_csv, write_json

logger = logging.getLogger(__name__)

PARTS = ("val", "test")
SUMMARY = ("mAP50", "mAP75", "mAP50:95", "mAP50_area", "windows.mAP50")
TABLE = "{}_classes.csv"
PICTURES = "pictures/{}_*_000000.jpg"  # step 0 only, to keep pictures of a training run in the same folder


def select_part(cfg: DetConfig, part: str, tasks: Sequence[str]) -> DetConfig:
    """Restrict the configuration to the named tasks, or without names to those with images of the part.

    Args:
        cfg: The configuration.
        part: One of :data:`PARTS`.
        tasks: Names of the tasks; may be empty.

    Raises:
        ConfigError: A named task is unknown or has no images of the part, or no task has any.
    """
    kept = known_tasks(cfg.tasks, tasks, "the configuration")
    available = {name: cfg.tasks[name] for name in kept if getattr(cfg.tasks[name], part) is not None}
    missing = [name for name in kept if name not in available]
    if (missing and tasks) or not available:
        raise ConfigError(
            f"--split {part}: no test images configured for {', '.join(missing)}; add for example "
            f"tasks.{missing[0]}.test=dict(images='dota/test-dev/images', windows=True)"
        )
    return cfg.model_copy(update={"tasks": available})


def image_names(images: OrientedValidation, merged: bool) -> list[str]:
    """Names of a task's full images.

    Raises:
        ConfigError: Some images are windows that are not merged.
    """
    if problem := _unmerged_windows(images, merged):
        raise ConfigError(problem)
    return whole_names(images.samples.names)


def warn_of_windows(images: OrientedValidation, merged: bool) -> None:
    """Warn if images of a task are windows whose detections are not merged."""
    if problem := _unmerged_windows(images, merged):
        logger.warning("%s. Otherwise, detections are written per window", problem)


def _unmerged_windows(images: OrientedValidation, merged: bool) -> str | None:
    """Message about windows that are not merged; None if there are none."""
    names = images.samples.names
    windows = [name for name in names if parse_window_name(name).image != name]
    if merged or not windows:
        return None
    return (
        f"{images.task}: by their names ({windows[0]}), {len(windows)} of {len(names)} images are windows of "
        f"larger ones: set test.windows=True for test images, whole for validation images"
    )


class DetectionCollector(BaseMetric):
    """Collects the detections of one task's images in the main process, without computing scores.

    Args:
        classes: Class names by label.
        task: Task whose images are collected.
        merge: Merge windows of larger images.
        nms: With `merge`, the IoU above which detections of overlapping windows are duplicates.

    Attributes:
        detections: Detections of the last evaluation by image name; empty in other processes.
    """

    default_prefix = ""  # mmengine warns without one

    def __init__(self, classes: Sequence[str], task: str, merge: bool, nms: float = NMS_THRESHOLD) -> None:
        super().__init__()
        self.classes, self.task, self.merge, self.nms = tuple(classes), task, merge, nms
        self.detections: dict[str, Detections] = {}
        self._collected: dict[str, Detections] = {}

    def process(self, data_batch: Mapping[str, Sequence], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect the detections of the task's images in a batch, see :class:`DetectionMetric`."""
        for name, task, sample in zip(data_batch["name"], data_batch["task"], data_samples, strict=True):
            if task == self.task:
                self._collected[name] = detections_of(sample["pred_instances"])

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the detections of all processes; returns no scores."""
        collected = gather(self._collected) or {}
        self._collected = {}
        return self.compute_metrics(collected)

    def compute_metrics(self, results: dict[str, Detections]) -> dict[str, float]:
        """Store the detections, merged if configured, ordered by image name."""
        self.detections = (
            merge_windows(results.items(), self.nms)
            if self.merge
            else {name: results[name] for name in sorted(results)}
        )
        return {}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the file and the remedy.

    Raises:
        LaunchError: A file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}). Free disk space or "
            f"choose another folder, and run again"
        ) from None


def remove_reports(folder: Path, parts: Sequence[str]) -> None:
    """Remove scores, tables and pictures of an earlier evaluation, which may be of other tasks or weights.

    Args:
        folder: Folder of the evaluation.
        parts: Parts of the data that may have pictures, such as `val`.
    """
    for pattern in (SCORES_FILE, TABLE.format("*"), *map(PICTURES.format, parts)):
        for path in folder.glob(pattern):
            path.unlink()


def write_texts(folder: Path, collector: DetectionCollector) -> None:
    """Write `<folder>/<task>/<image>.txt` for each image, see :mod:`s5.data.oriented.detections`."""
    for name, found in collector.detections.items():
        write_detections(folder / collector.task / f"{name}.txt", found, collector.classes)


def write_reports(
    folder: Path,
    metrics: Sequence[DetectionMetric],
    scores: Mapping[str, float],
    settings: Mapping[str, Any],
) -> None:
    """Write `scores.json` and, for each task, `<task>_classes.csv`; log a row per task.

    Args:
        folder: Output folder.
        metrics: Metrics that have been evaluated.
        scores: Results of the metrics, with prefixes.
        settings: What was evaluated and with which settings, for `scores.json`.
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
    """Scores of every class in percent (NaN without objects), and its numbers of objects and detections."""
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
    """Scores of a task averaged over its classes."""
    own = {
        name.removeprefix(f"{task}/"): value for name, value in scores.items() if name.startswith(f"{task}/")
    }
    return {name: value for name, value in own.items() if not name.startswith("AP50.")}


def _table(metric: DetectionMetric, means: Mapping[str, float]) -> list[list[object]]:
    """Table with a row per class and a row of means."""
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
