"""Draw oriented boxes on images."""

from collections.abc import Sequence

import cv2
import numpy as np

from s5.data.label_table import distinct_colors
from s5.data.oriented.detections import Detections
from s5.data.oriented.geometry import to_polygons

CROWD = 50  # from this number of objects on, a legend replaces the names, which would hide the image
LEGEND = 0.5  # font scale
LINE = 22  # height of a legend line in pixels
DARK = (20, 20, 20)
TRUTH = (255, 255, 255)
AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))  # offsets of the dark outline that makes text readable anywhere
SHIFT = 4  # fractional bits of coordinates, for smooth lines


def draw_polygons(
    image: np.ndarray,
    polygons: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draw outlines in class colours, with names, on a copy of an image.

    Args:
        image: uint8 (H, W, 3) RGB.
        polygons: (n, 4, 2) corners in pixels.
        labels: (n,) class labels.
        classes: Class names.
        scores: (n,) scores, written beside the names.
    """
    drawn = np.ascontiguousarray(image).copy()
    width = max(1, round(max(image.shape[:2]) / 600))
    colors = distinct_colors(len(classes))
    for i, (polygon, label) in enumerate(zip(polygons, labels, strict=True)):
        outline(drawn, polygon, colors[label], width)
        text = classes[label] if scores is None else f"{classes[label]} {scores[i]:.2f}"
        _write(drawn, text, polygon, colors[label], width)
    return drawn


def draw_detections(image: np.ndarray, factor: int, found: Detections, classes: Sequence[str]) -> np.ndarray:
    """Draw detections on a copy of an image, with names and scores, or with a legend if there are many.

    Args:
        image: uint8 (H, W, 3) RGB, scaled down by `factor`.
        factor: Pixels of the detections per pixel of the image.
        found: The detections; high scores are drawn on top.
        classes: Class names.
    """
    order = np.argsort(found.scores, kind="stable")
    polygons = to_polygons(found.boxes)[order] / factor
    return draw_objects(image, polygons, found.labels[order], classes, found.scores[order])


def draw_objects(
    image: np.ndarray,
    polygons: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draw outlines like :func:`draw_polygons`; if there are many, a legend replaces the names."""
    if len(labels) < CROWD:
        return draw_polygons(image, polygons, labels, classes, scores)
    drawn = np.ascontiguousarray(image).copy()
    colors = distinct_colors(len(classes))
    for polygon, label in zip(polygons, labels, strict=True):
        outline(drawn, polygon, colors[label], max(1, round(max(image.shape[:2]) / 1200)))
    counts = np.bincount(labels, minlength=len(classes))
    entries = [
        (f"{name} {count}", colors[i])
        for i, (name, count) in enumerate(zip(classes, counts, strict=True))
        if count
    ]
    return np.concatenate([drawn, draw_legend(entries, image.shape[1], max(1, max(image.shape[:2]) // 1000))])


def draw_truth(image: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Draw white outlines (n, 4, 2) of ground truth on a copy of an image."""
    drawn = np.ascontiguousarray(image).copy()
    for polygon in polygons:
        outline(drawn, polygon, TRUTH, 1)
    return drawn


def draw_legend(entries: Sequence[tuple[str, Sequence[int]]], width: int, size: int) -> np.ndarray:
    """Draw a legend of colour squares with text, scaled by `size`, in as many lines as needed."""
    line, letters, gap = size * LINE, size * LEGEND, size * 5
    positions, left, top = [], 0, 0
    for text, _ in entries:
        length = 2 * line + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, letters, size)[0][0]
        if left and left + length > width:
            left, top = 0, top + line
        positions.append((left, top))
        left += length
    legend = np.full((top + line, width, 3), 255, np.uint8)
    for (text, color), (x, y) in zip(entries, positions, strict=True):
        cv2.rectangle(legend, (x + gap, y + gap), (x + line - gap, y + line - gap), color, -1)
        origin = (x + line, y + line - gap)
        cv2.putText(legend, text, origin, cv2.FONT_HERSHEY_SIMPLEX, letters, DARK, size, cv2.LINE_AA)
    return legend


def outline(image: np.ndarray, polygon: np.ndarray, color: Sequence[int], width: int) -> None:
    """Draw a polygon (4, 2) in place; integer coordinates are pixel centres."""
    corners = np.round(polygon * 2**SHIFT).astype(np.int32)
    cv2.polylines(image, [corners], True, color, width, cv2.LINE_AA, SHIFT)


def _write(image: np.ndarray, text: str, polygon: np.ndarray, color: Sequence[int], width: int) -> None:
    """Write text at the top corner of a polygon, inside the image."""
    size = 0.35 + 0.1 * width
    (length, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
    x, y = polygon[polygon[:, 1].argmin()]
    left = int(np.clip(x, 0, max(image.shape[1] - length, 0)))
    bottom = int(np.clip(y - 2, height, image.shape[0] - 1))
    for dx, dy, shade in (*((dx, dy, DARK) for dx, dy in AROUND), (0, 0, color)):
        origin = (left + dx, bottom + dy)
        cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, shade, width, cv2.LINE_AA)
