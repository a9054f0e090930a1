"""Evaluation of a detector: which images, collecting detections, and reports of scores."""

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
from s5.training.reports import SCORES_FILE, number_cell, summary_table, write_csv, write_json

logger = logging.getLogger(__name__)

PARTS = ("val", "test")
SUMMARY = ("mAP50", "mAP75", "mAP50:95", "mAP50_area", "windows.mAP50")
TABLE = "{}_classes.csv"
PICTURES = "pictures/{}_*_000000.jpg"  # of no step: those of a training in the same folder stay


def select_part(cfg: DetConfig, part: str, tasks: Sequence[str]) -> DetConfig:
    """The configuration with the named tasks only; without names, with those that have images of the part.

    Args:
        cfg: The configuration.
        part: Of :data:`PARTS`.
        tasks: Names; may be empty.

    Raises:
        ConfigError: A task is unknown, or has no test images.
    """
    for name in tasks:
        if name not in cfg.tasks:
            raise ConfigError(
                f"--tasks {name}: the configuration has no such task; it has {', '.join(cfg.tasks)}"
            )
    kept = {name: task for name, task in cfg.tasks.items() if name in tasks or not tasks}
    having = {name: task for name, task in kept.items() if getattr(task, part) is not None}
    lacking = [name for name in kept if name not in having]
    if (lacking and tasks) or not having:
        raise ConfigError(
            f"--split {part}: {', '.join(lacking)} without images to test; add for example "
            f"tasks.{lacking[0]}.test=dict(images='dota/test-dev/images', windows=True)"
        )
    return cfg.model_copy(update={"tasks": having})


def image_names(images: OrientedValidation, merged: bool) -> list[str]:
    """Names of the whole images of a task.

    Raises:
        ConfigError: Some of them are windows that are not merged.
    """
    if problem := _lone_windows(images, merged):
        raise ConfigError(problem)
    return whole_names(images.samples.names)


def warn_of_windows(images: OrientedValidation, merged: bool) -> None:
    """Warn if images of a task are windows whose detections are not merged."""
    if problem := _lone_windows(images, merged):
        logger.warning("%s. Without it, the detections written are of single windows", problem)


def _lone_windows(images: OrientedValidation, merged: bool) -> str | None:
    """What to do about windows that are not merged; None if there are none."""
    names = images.samples.names
    windows = [name for name in names if parse_window_name(name).image != name]
    if merged or not windows:
        return None
    return (
        f"{images.task}: {len(windows)} of {len(names)} images are windows of larger ones by their names "
        f"({windows[0]}): set test.windows=True for test images, whole for validation images"
    )


class DetectionCollector(BaseMetric):
    """Collects the detections of one task's images in the main process; gives no scores.

    Args:
        classes: Names of the classes, by label.
        task: Whose images are taken.
        merge: Merge windows of larger images.
        nms: IoU above which detections of overlapping windows are one, for `merge`.

    Attributes:
        detections: Of the last evaluation, by name of the image; empty in other processes.
    """

    default_prefix = ""  # mmengine asks for one

    def __init__(self, classes: Sequence[str], task: str, merge: bool, nms: float = NMS_THRESHOLD) -> None:
        super().__init__()
        self.classes, self.task, self.merge, self.nms = tuple(classes), task, merge, nms
        self.detections: dict[str, Detections] = {}
        self._found: dict[str, Detections] = {}

    def process(self, data_batch: Mapping[str, Sequence], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the detections of the task's images in a batch, see :class:`DetectionMetric`."""
        for name, task, sample in zip(data_batch["name"], data_batch["task"], data_samples, strict=True):
            if task == self.task:
                self._found[name] = detections_of(sample["pred_instances"])

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the detections of all processes; there are no scores."""
        found = gather(self._found) or {}
        self._found = {}
        return self.compute_metrics(found)

    def compute_metrics(self, results: dict[str, Detections]) -> dict[str, float]:
        """Keep the detections, merged or as they are, in the order of the names."""
        self.detections = (
            merge_windows(results.items(), self.nms)
            if self.merge
            else {name: results[name] for name in sorted(results)}
        )
        return {}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the file and the way out.

    Raises:
        LaunchError: A file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}). Make room or choose "
            f"another folder, and run again"
        ) from None


def remove_reports(folder: Path, parts: Sequence[str]) -> None:
    """Remove scores, tables and pictures of an earlier evaluation, perhaps of other tasks or weights.

    Args:
        folder: Of the evaluation.
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
    """Write `scores.json`, and of each task `<task>_classes.csv`; log a line per task.

    Args:
        folder: Where to.
        metrics: After their evaluation.
        scores: Their results, with prefixes.
        settings: What was evaluated and how, for `scores.json`.
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
