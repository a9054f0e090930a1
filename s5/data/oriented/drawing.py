"""Drawings of oriented boxes on images."""

from collections.abc import Sequence

import cv2
import numpy as np

from s5.data.labels import distinct_colors
from s5.data.oriented.detections import Detections
from s5.data.oriented.geometry import to_polygons

CROWD = 50  # objects, from which on names would hide the picture
LEGEND = 0.5  # size of letters
LINE = 22  # pixels of a line of the legend
DARK = (20, 20, 20)
TRUTH = (255, 255, 255)
AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))  # where letters are dark first, to be read on any ground
SHIFT = 4  # bits behind the point of a pixel's coordinates, so that lines are smooth


def draw_polygons(
    image: np.ndarray,
    polygons: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draw outlines in the colours of their classes, with names, on a copy of an image.

    Args:
        image: uint8 (H, W, 3) RGB.
        polygons: (n, 4, 2) corners in pixels.
        labels: (n,) classes.
        classes: names of the classes.
        scores: (n,) written beside the names.
    """
    drawn = np.ascontiguousarray(image).copy()
    width = max(1, round(max(image.shape[:2]) / 600))
    colors = distinct_colors(len(classes))
    for i, (polygon, label) in enumerate(zip(polygons, labels, strict=True)):
        _outline(drawn, polygon, colors[label], width)
        text = classes[label] if scores is None else f"{classes[label]} {scores[i]:.2f}"
        _write(drawn, text, polygon, colors[label], width)
    return drawn


def draw_detections(image: np.ndarray, factor: int, found: Detections, classes: Sequence[str]) -> np.ndarray:
    """Draw detections on a copy of an image: with names and scores, or with a legend where there are many.

    Args:
        image: uint8 (H, W, 3) RGB, reduced by ``factor``.
        factor: pixels of the detections per pixel of the image.
        found: what to draw; those of high scores come on top.
        classes: names of the classes.
    """
    order = np.argsort(found.scores, kind="stable")
    polygons, labels, scores = (
        to_polygons(found.boxes)[order] / factor,
        found.labels[order],
        found.scores[order],
    )
    if len(order) < CROWD:
        return draw_polygons(image, polygons, labels, classes, scores)
    drawn = np.ascontiguousarray(image).copy()
    colors = distinct_colors(len(classes))
    for polygon, label in zip(polygons, labels, strict=True):
        _outline(drawn, polygon, colors[label], max(1, round(max(image.shape[:2]) / 1200)))
    counts = np.bincount(labels, minlength=len(classes))
    entries = [
        (f"{name} {count}", colors[i])
        for i, (name, count) in enumerate(zip(classes, counts, strict=True))
        if count
    ]
    return np.concatenate([drawn, draw_legend(entries, image.shape[1], max(1, max(image.shape[:2]) // 1000))])


def draw_truth(image: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Draw outlines (n, 4, 2) of objects in white on a copy of an image."""
    drawn = np.ascontiguousarray(image).copy()
    for polygon in polygons:
        _outline(drawn, polygon, TRUTH, 1)
    return drawn


def draw_legend(entries: Sequence[tuple[str, Sequence[int]]], width: int, size: int) -> np.ndarray:
    """Texts beside squares of their colours, ``size`` times the usual, in as many lines as it takes.

    Returns:
        uint8 (h, width, 3).
    """
    line, letters, gap = size * LINE, size * LEGEND, size * 5
    places, left, top = [], 0, 0
    for text, _ in entries:
        length = 2 * line + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, letters, size)[0][0]
        if left and left + length > width:
            left, top = 0, top + line
        places.append((left, top))
        left += length
    legend = np.full((top + line, width, 3), 255, np.uint8)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        cv2.rectangle(legend, (x + gap, y + gap), (x + line - gap, y + line - gap), color, -1)
        place = (x + line, y + line - gap)
        cv2.putText(legend, text, place, cv2.FONT_HERSHEY_SIMPLEX, letters, DARK, size, cv2.LINE_AA)
    return legend


def _outline(image: np.ndarray, polygon: np.ndarray, color: Sequence[int], width: int) -> None:
    corners = np.round(polygon * 2**SHIFT).astype(np.int32)
    cv2.polylines(image, [corners], True, color, width, cv2.LINE_AA, SHIFT)


def _write(image: np.ndarray, text: str, polygon: np.ndarray, color: Sequence[int], width: int) -> None:
    """Write a text at the upper corner of a polygon, inside the image."""
    size = 0.35 + 0.1 * width
    (length, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
    x, y = polygon[polygon[:, 1].argmin()]
    left = int(np.clip(x, 0, max(image.shape[1] - length, 0)))
    bottom = int(np.clip(y - 2, height, image.shape[0] - 1))
    for dx, dy, shade in (*((dx, dy, DARK) for dx, dy in AROUND), (0, 0, color)):
        place = (left + dx, bottom + dy)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, shade, width, cv2.LINE_AA)
