"""Detections of an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s5.data.files import write_bytes
from s5.data.oriented.geometry import to_polygons


class Detections(NamedTuple):
    """Detected objects of one image.

    Attributes:
        boxes: float32 (n, 5), le90, in pixels of the image.
        scores: float32 (n,), 0 to 1.
        labels: int64 (n,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def select(self, which: np.ndarray) -> "Detections":
        """Select detections by a mask or indices."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])


def make_detections(boxes: object = (), scores: object = (), labels: object = ()) -> Detections:
    """Create detections from arrays, lists or CPU tensors; none by default."""
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 5),
        np.asarray(scores, np.float32).reshape(-1),
        np.asarray(labels, np.int64).reshape(-1),
    )


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Concatenate detections, in order."""
    return Detections(*map(np.concatenate, zip(*parts, strict=True))) if parts else make_detections()


def write_detections(path: Path, found: Detections, classes: Sequence[str]) -> None:
    """Write a line `x1 y1 x2 y2 x3 y3 x4 y4 class 0 score` for each detection, atomically.

    The first ten fields are a DOTA annotation of an object that is not difficult.

    Args:
        path: The file; missing folders are created.
        found: The detections; corners are written with two decimals, scores with full precision.
        classes: Class names by label.
    """
    rows = zip(to_polygons(found.boxes).reshape(-1, 8), found.labels, found.scores, strict=True)
    lines = [f"{corners_text(corners)} {classes[label]} 0 {score}\n" for corners, label, score in rows]
    write_bytes(path, "".join(lines).encode())


def corners_text(corners: np.ndarray) -> str:
    """Format eight coordinates with two decimals."""
    return " ".join(f"{value:.2f}" for value in corners)
