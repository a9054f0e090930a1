"""Drawings of oriented boxes on images."""

from collections.abc import Sequence

import cv2
import numpy as np

from s5.data.labels import distinct_colors

TRUTH = (255, 255, 255)
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


def draw_truth(image: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Draw outlines (n, 4, 2) of objects in white on a copy of an image."""
    drawn = np.ascontiguousarray(image).copy()
    for polygon in polygons:
        _outline(drawn, polygon, TRUTH, 1)
    return drawn


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
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, size, color, width, cv2.LINE_AA)
