"""Detections as text, a file for each image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s5.data.image_io import write_bytes
from s5.data.oriented.detections import Detections
from s5.data.oriented.geometry import to_polygons


def write_detections(path: Path, found: Detections, classes: Sequence[str]) -> None:
    """Write a line ``x1 y1 x2 y2 x3 y3 x4 y4 class 0 score`` for each detection, whole or not at all.

    The first ten fields are those of a DOTA annotation of an object that is not difficult.

    Args:
        path: the file; missing folders are made.
        found: corners are written with two decimals, scores with all digits.
        classes: names by label.
    """
    rows = zip(to_polygons(found.boxes).reshape(-1, 8), found.labels, found.scores, strict=True)
    lines = [f"{corners_text(corners)} {classes[label]} 0 {score}\n" for corners, label, score in rows]
    write_bytes(path, "".join(lines).encode())


def corners_text(corners: np.ndarray) -> str:
    """Eight coordinates with two decimals."""
    return " ".join(f"{value:.2f}" for value in corners)
