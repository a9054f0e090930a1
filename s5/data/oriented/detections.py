"""What a detector finds in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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

    def select(self, which: np.ndarray) -> Detections:
        """Some of them, by a mask or indices."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])


def make_detections(boxes: object = (), scores: object = (), labels: object = ()) -> Detections:
    """Detections from arrays, lists or tensors on a CPU; none by default."""
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 5),
        np.asarray(scores, np.float32).reshape(-1),
        np.asarray(labels, np.int64).reshape(-1),
    )


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All detections of several parts, in their order."""
    return Detections(*map(np.concatenate, zip(*parts, strict=True))) if parts else make_detections()
