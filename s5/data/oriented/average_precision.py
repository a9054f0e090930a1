"""Average precision of rotated boxes, as the VOC and DOTA development kits and mmrotate define it.

A detection is matched to the object of its class with the largest IoU, if that reaches the threshold. In
order of decreasing score, the first match of an object is a true positive, further ones are false positives;
a match of a difficult object is not counted, and a detection without a match is a false positive.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from s5.data.oriented.annotations import Objects
from s5.data.oriented.detections import Detections
from s5.ops.rotated_iou import rotated_iou

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RIGHT, WRONG, NOT_COUNTED = 1, 0, -1
CELLS = 1 << 20  # cells of the overlap table held at once
_RECALLS = np.arange(0, 1.1, 0.1)  # with the rounding of 0.3, 0.6 and 0.7 in the development kits


class Precision(NamedTuple):
    """Scores of all classes, 0 to 1; NaN for classes without objects.

    Attributes:
        eleven_points: (K, T) by class and IoU threshold, mean precision at recalls 0, 0.1 ... 1 (VOC
            2007), used for DOTA and DIOR-R.
        area: (K, T), area under the precision-recall curve.
        recall: (K, T), recall of all detections.
        objects: int64 (K,), without difficult ones.
        detections: int64 (K,).
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
