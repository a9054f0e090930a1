"""Average precision of rotated boxes, exact with any number of processes.

As defined in the VOC and DOTA development kits and mmrotate. A detection is matched to the object of its
class with the largest IoU, if that reaches the threshold. In order of decreasing score, the first match of an
object is a true positive, further ones are false positives; a match of a difficult object is not counted, and
a detection without a match is a false positive.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from mmengine.evaluator import BaseMetric
from torch.utils.data import DataLoader

from s5.data.oriented.annotations import Objects
from s5.data.oriented.detections import Detections, make_detections
from s5.data.oriented.merge import NMS_THRESHOLD, merge_objects, merge_windows
from s5.data.oriented.samples import read_whole
from s5.data.oriented.sources import OrientedValidation
from s5.detection.config import DetConfig
from s5.launch import host_group
from s5.ops.rotated_iou import rotated_iou
from s5.training.command import naming
from s5.training.reports import text_table

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
AT_50, AT_75 = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
RIGHT, WRONG, NOT_COUNTED = 1, 0, -1
CELLS = 1 << 20  # cells of the overlap table held at once
_RECALLS = np.arange(0, 1.1, 0.1)  # with the rounding of 0.3, 0.6 and 0.7 in the development kits
COLUMNS = ("class", "objects", "detections", "recall50", "AP50", "AP75", "AP50:95")

Item = TypeVar("Item")
Found = dict[str, tuple[Detections, Objects]]


class Precision(NamedTuple):
    """Scores of all classes, 0 to 1; NaN for classes without objects.

    Attributes:
        eleven_points: (K, T) by class and IoU threshold, mean precision at recalls 0, 0.1 ... 1 (VOC
            2007), used for DOTA and DIOR-R.
        area: (K, T), area under the precision-recall curve.
        recall: (K, T), recall of all detections.
        objects: int64 (K,), number of objects, without difficult ones.
        detections: int64 (K,), number of detections.
    """

    eleven_points: np.ndarray
    area: np.ndarray
    recall: np.ndarray
    objects: np.ndarray
    detections: np.ndarray


class Matches(NamedTuple):
    """Outcome of each detection of one or more images: true positive, false positive or not counted.

    Attributes:
        scores: float32 (n,).
        labels: int64 (n,).
        outcomes: int8 (T, n), by IoU threshold: `RIGHT`, `WRONG` or `NOT_COUNTED`.
        objects: int64 (K,), objects of each class without difficult ones.
    """

    scores: np.ndarray
    labels: np.ndarray
    outcomes: np.ndarray
    objects: np.ndarray


def match(
    found: Detections, objects: Objects, classes: int, thresholds: Sequence[float] = THRESHOLDS
) -> Matches:
    """Match the detections of an image to its objects.

    Args:
        found: Detections; among equal scores, the earlier one goes first.
        objects: Ground truth, in pixels of the same image.
        classes: Number of classes.
        thresholds: IoU thresholds above 0.
    """
    overlap, nearest = _best_overlaps(found, objects)
    order = np.argsort(-found.scores, kind="stable")
    outcomes = np.full((len(thresholds), len(found.scores)), WRONG, np.int8)
    for row, threshold in zip(outcomes, thresholds, strict=True):
        meeting = order[overlap[order] >= threshold]
        row[meeting[objects.difficult[nearest[meeting]]]] = NOT_COUNTED
        counted = meeting[~objects.difficult[nearest[meeting]]]
        row[counted[np.unique(nearest[counted], return_index=True)[1]]] = RIGHT
    counts = np.bincount(objects.labels[~objects.difficult], minlength=classes)
    return Matches(found.scores, found.labels, outcomes, counts)


def average_precision(parts: Sequence[Matches], classes: int) -> Precision:
    """Average precision over all images.

    Among detections with equal scores, those of earlier images go first: keep the order of the images fixed
    to get the same result with any number of processes.

    Args:
        parts: Matches of each image.
        classes: Number of classes.
    """
    none = Matches(np.zeros(0), np.zeros(0, int), np.zeros((len(THRESHOLDS), 0)), np.zeros(classes, int))
    parts = [none, *parts]
    scores = np.concatenate([part.scores for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    outcomes = np.concatenate([part.outcomes for part in parts], axis=1)
    objects = np.sum([part.objects for part in parts], axis=0)
    order = np.argsort(-scores, kind="stable")
    labels, outcomes = labels[order], outcomes[:, order]
    shape = len(objects), len(outcomes)
    eleven, area, recall = (np.full(shape, np.nan) for _ in range(3))
    for label in np.flatnonzero(objects):
        own = outcomes[:, labels == label]
        for column, outcome in enumerate(own):
            recalls, precisions = _curve(outcome, objects[label])
            eleven[label, column] = _eleven_points(recalls, precisions)
            area[label, column] = _area(recalls, precisions)
            recall[label, column] = recalls[-1] if len(recalls) else 0
    return Precision(eleven, area, recall, objects, np.bincount(labels, minlength=len(objects)))


def _best_overlaps(found: Detections, objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU (n,) with an object of the same class, 0 for none, and the index of that object."""
    overlap, nearest = np.zeros(len(found.scores)), np.zeros(len(found.scores), np.int64)
    if not len(objects) or not len(overlap):
        return overlap, nearest
    detected, true = _apart_by_class(found, objects)
    rows = max(1, CELLS // len(objects))
    for start in range(0, len(overlap), rows):
        table = rotated_iou(detected[start : start + rows], true)
        overlap[start : start + rows], nearest[start : start + rows] = table.amax(1), table.argmax(1)
    return overlap, nearest


def _apart_by_class(found: Detections, objects: Objects) -> list[torch.Tensor]:
    """Boxes (n, 5) and (m, 5), float64, shifted so that different classes do not overlap."""
    boxes = [torch.from_numpy(part).double() for part in (found.boxes, objects.boxes)]
    together = torch.cat(boxes)
    finite = together[together.isfinite().all(1)].abs()
    reach = float((finite[:, 0] + finite[:, 2] + finite[:, 3]).max())
    for part, labels in zip(boxes, (found.labels, objects.labels), strict=True):
        part[:, 0] += torch.from_numpy(labels) * (2 * reach + 1)
    return boxes


def _curve(outcome: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection, by decreasing score."""
    counted = outcome[outcome != NOT_COUNTED]
    right = np.cumsum(counted == RIGHT)
    return right / objects, right / np.arange(1, len(counted) + 1)


def _eleven_points(recalls: np.ndarray, precisions: np.ndarray) -> float:
    best = np.append(np.maximum.accumulate(precisions[::-1])[::-1], 0)
    return float(best[np.searchsorted(recalls, _RECALLS)].mean())


def _area(recalls: np.ndarray, precisions: np.ndarray) -> float:
    """Area under the curve of interpolated precision: the best precision at this or a higher recall."""
    best = np.maximum.accumulate(precisions[::-1])[::-1]
    return float((np.diff(recalls, prepend=0) * best).sum())


class DetectionMetric(BaseMetric):
    """mAP and AP of every class of one task, in percent.

    `mAP50`, `mAP75` and `mAP50:95` (mean over the IoU thresholds 0.5, 0.55 ... 0.95) are 11-point averages,
    as in the benchmarks DOTA and DIOR-R; those with the suffix `_area` are areas under the curve.
    `AP50.<class>` is an 11-point average. Classes without objects are excluded from means; difficult objects
    are neither hits nor misses.

    Every image counts once, by its name and in the order of the names, so that the scores do not depend on
    the number of processes.

    With `merge`, the images are windows of larger ones (see :mod:`s5.data.oriented.merge`): the scores are
    those of the full images, and those of the windows are added as `windows.mAP50` ...

    Args:
        classes: Class names by label.
        task: Task whose images are counted.
        prefix: Scores are named `<prefix>/mAP50`, or `mAP50` without one.
        merge: Merge windows before scoring.
        whole: With `merge`, the objects of the full images by name; by default, those merged from the
            windows.
        nms: With `merge`, the IoU above which detections of overlapping windows are duplicates.

    Attributes:
        precision: Result of the last evaluation, with `merge` of the full images; in the main process only.
    """

    default_prefix = ""  # mmengine warns without one

    def __init__(
        self,
        classes: Sequence[str],
        task: str,
        prefix: str = "",
        merge: bool = False,
        whole: Mapping[str, Objects] | None = None,
        nms: float = NMS_THRESHOLD,
    ) -> None:
        super().__init__(prefix=prefix)
        self.classes, self.task, self.merge = tuple(classes), task, merge
        self.whole, self.nms = whole, nms
        self.precision: Precision | None = None
        self._matches: dict[str, Matches] = {}
        self._windows: Found = {}

    def process(self, data_batch: Mapping[str, Sequence], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Match the detections of the task's images in a batch with the ground truth.

        Args:
            data_batch: Lists `name`, `task` and `objects` from
                :class:`~s5.data.oriented.sources.OrientedValidation`.
            data_samples: `pred_instances` with `bboxes` (n, 5), `scores` and `labels`, in pixels of
                the image file.
        """
        batch = (data_batch[key] for key in ("name", "task", "objects"))
        for name, task, objects, sample in zip(*batch, data_samples, strict=True):
            if task != self.task:
                continue
            found = detections_of(sample["pred_instances"])
            self._matches[name] = match(found, objects, len(self.classes))
            if self.merge:
                self._windows[name] = found, objects

    def evaluate(self, size: int) -> dict[str, float]:
        """Compute scores of the images that all processes have processed since the last call."""
        matches, windows = gather(self._matches), gather(self._windows)
        self._matches, self._windows = {}, {}
        outcome: list[Any] = [None]
        if matches is not None and windows is not None:
            outcome = [self.compute_metrics((matches, windows))]
        if dist.is_initialized():
            dist.broadcast_object_list(outcome, 0, group=host_group())
        prefix = f"{self.prefix}/" if self.prefix else ""
        return {prefix + name: value for name, value in outcome[0].items()}

    def compute_metrics(self, results: tuple[dict[str, Matches], Found]) -> dict[str, float]:
        """Compute scores from matches and windows to merge, both by image name; log those of the classes."""
        matches, windows = results
        precision = average_precision([matches[name] for name in sorted(matches)], len(self.classes))
        if not self.merge:
            return self._report(precision)
        whole = self._whole(windows)
        parts = [match(*whole[name], len(self.classes)) for name in sorted(whole)]
        of_windows = {f"windows.{name}": value for name, value in _means(precision).items()}
        return self._report(average_precision(parts, len(self.classes))) | of_windows

    def _whole(self, found: Found) -> Found:
        """Detections and objects of the full images that the windows belong to."""
        merged = merge_windows(((name, detections) for name, (detections, _) in found.items()), self.nms)
        objects = self.whole
        if objects is None:
            objects = merge_objects((name, part) for name, (_, part) in sorted(found.items()))
        return {image: (merged[image], objects[image]) for image in merged}

    def _report(self, precision: Precision) -> dict[str, float]:
        self.precision = precision
        logger.info("%s\n%s", self.task, self._table(precision))
        own = zip(self.classes, 100 * precision.eleven_points[:, AT_50], strict=True)
        return _means(precision) | {f"AP50.{name}": float(value) for name, value in own}

    def _table(self, precision: Precision) -> str:
        rows: list[list[object]] = []
        for i, name in enumerate(self.classes):
            ap = precision.eleven_points[i]
            values = 100 * np.array([precision.recall[i, AT_50], ap[AT_50], ap[AT_75], ap.mean()])
            counts = precision.objects[i], precision.detections[i]
            rows.append([name, *counts, *(f"{value:.2f}" for value in values)])
        means = (f"{name} {value:.2f}" for name, value in _means(precision).items())
        return f"{text_table(COLUMNS, rows)}\n{'  '.join(means)}"


def _means(precision: Precision) -> dict[str, float]:
    """Means over the classes that have objects, in percent; NaN if there are none."""
    present = precision.objects > 0
    scores: dict[str, float] = {}
    for values, end in ((precision.eleven_points, ""), (precision.area, "_area")):
        mean = 100 * values[present].mean(0) if present.any() else np.full(len(THRESHOLDS), np.nan)
        scores |= {
            f"mAP50{end}": float(mean[AT_50]),
            f"mAP75{end}": float(mean[AT_75]),
            f"mAP50:95{end}": float(mean.mean()),
        }
    return scores


def detections_of(instances: Mapping[str, Any]) -> Detections:
    """Convert a model's `bboxes` (n, 5), `scores` and `labels` to detections."""
    boxes = instances["bboxes"]
    boxes = getattr(boxes, "tensor", boxes)  # mmrotate's box type around a tensor
    return make_detections(*(values.cpu() for values in (boxes, instances["scores"], instances["labels"])))


def gather(items: dict[str, Item]) -> dict[str, Item] | None:
    """Gather the items of all processes in the main process; return None in the others."""
    if not dist.is_initialized():
        return items
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(items, parts, group=host_group())
    return None if parts is None else {name: item for part in parts for name, item in part.items()}


def images_of(loader: DataLoader) -> dict[str, OrientedValidation]:
    """Return the images of each task in a loader of `DetectionExperiment.build_val_loader`."""
    parts: Iterable[OrientedValidation] = loader.dataset.datasets  # type: ignore[attr-defined]
    return {part.task: part for part in parts}


def is_merged(cfg: DetConfig, task: str, part: str) -> bool:
    """Whether the images of a task are windows whose detections are merged."""
    section = cfg.tasks[task]
    return section.whole is not None if section.test is None or part == "val" else section.test.windows


def build_metrics(
    cfg: DetConfig, classes: Mapping[str, Sequence[str]], loader: DataLoader, part: str = "val"
) -> list[DetectionMetric]:
    """Build metrics, named `<task>/mAP50` ..., for the tasks whose images have annotations.

    Labels of full images are read here, so that problems with them are reported before anything runs.

    Args:
        cfg: The configuration.
        classes: Class names of each task.
        loader: Loader of the images of `part`.
        part: "val" or "test".

    Raises:
        DataError: The labels of full images are missing or invalid; the message lists the first files.
    """
    images = images_of(loader)
    metrics = []
    for task, names in classes.items():
        section = cfg.tasks[task]
        if getattr(section, part).annotations is None:
            continue
        whole = None
        if part == "val" and section.whole is not None:
            with naming(f"tasks.{task}.whole"):
                folder = cfg.data_root / section.whole
                whole = read_whole(folder, images[task].samples.names, names, section.leave_out)
        merge = is_merged(cfg, task, part)
        metrics.append(DetectionMetric(names, task, task, merge, whole, cfg.model.nms))
    return metrics
