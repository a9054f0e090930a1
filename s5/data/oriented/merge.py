"""Merge the windows of an image: their detections by rotated NMS, and their objects.

The name of a window gives its position: `<image>__<size>__<x>___<y>`, with offsets in image pixels,
as written by mmrotate's tool and `python -m s5.data.prepare dota`. DOTA's development kit writes a rate
(such as 1 or 0.5) instead of the size, by which the image was resized before cutting: offsets
and boxes are then in pixels of the resized image.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch

from s5.data.oriented.annotations import Objects
from s5.data.oriented.detections import Detections, concatenate
from s5.ops.rotated_nms import rotated_nms

NMS_THRESHOLD = 0.1  # as published and usual for DOTA
LARGEST_RATE = 16  # smaller numbers are rates: no window is that small, and no image is enlarged that much
SAME = 0.25  # largest difference in pixels between coordinates of the same object in different windows
_WINDOW = re.compile(r"(?P<image>.+)__(?P<size>\d+(?:\.\d+)?)__(?P<x>\d+)___(?P<y>\d+)")


class WindowPosition(NamedTuple):
    """Position of a window in its image.

    Attributes:
        image: Name of the image.
        x: First column, in pixels of the window.
        y: First row, in pixels of the window.
        rate: Pixels of the window per pixel of the image.
    """

    image: str
    x: int = 0
    y: int = 0
    rate: float = 1.0


def window_name(image: str, size: int, x: int, y: int) -> str:
    """Name of the window of `size` pixels at column `x` and row `y` of an image."""
    return f"{image}__{size}__{x}___{y}"


def parse_window_name(name: str) -> WindowPosition:
    """Parse the name of a window; any other name is that of a full image."""
    parts = _WINDOW.fullmatch(name)
    if parts is None:
        return WindowPosition(name)
    size = float(parts["size"])
    rate = size if 0 < size < LARGEST_RATE else 1.0
    return WindowPosition(parts["image"], int(parts["x"]), int(parts["y"]), rate)


def merge_windows(
    windows: Iterable[tuple[str, Detections]], threshold: float = NMS_THRESHOLD
) -> dict[str, Detections]:
    """Merge the detections of windows to those of full images, by rotated NMS within each class.

    Args:
        windows: Name and detections of each window, in pixels of the window, in any order.
        threshold: IoU above which the box with the lower score is removed.

    Returns:
        Detections by image, sorted by name; those of an image by decreasing score.
    """
    parts: dict[str, list[tuple[str, Detections]]] = defaultdict(list)
    for name, found in windows:
        window = parse_window_name(name)
        boxes = found.boxes.copy()
        boxes[:, :2] += np.array([window.x, window.y], np.float32)
        boxes[:, :4] /= np.float32(window.rate)
        parts[window.image].append((name, found._replace(boxes=boxes)))
    return {image: _suppress(parts[image], threshold) for image in sorted(parts)}


def merge_objects(windows: Iterable[tuple[str, Objects]]) -> dict[str, Objects]:
    """Merge the unclipped objects of overlapping windows to those of full images.

    Objects in no window, such as those much larger than the windows, are missing: use the annotations of
    the full images if available.

    Returns:
        Objects by image, sorted by name.
    """
    parts: dict[str, list[Objects]] = defaultdict(list)
    for name, objects in windows:
        window = parse_window_name(name)
        polygons = (objects.polygons + np.array([window.x, window.y], np.float32)) / np.float32(window.rate)
        parts[window.image].append(Objects(polygons, objects.labels, objects.difficult))
    return {image: _without_repeats(parts[image]) for image in sorted(parts)}


def _suppress(windows: list[tuple[str, Detections]], threshold: float) -> Detections:
    windows.sort(key=lambda window: window[0])  # the order matters among equal scores
    found = concatenate([part for _, part in windows])
    boxes, scores, labels = map(torch.from_numpy, found)
    return found.select(rotated_nms(boxes, scores, threshold, labels).numpy())


def _without_repeats(parts: Sequence[Objects]) -> Objects:
    objects = Objects(
        np.concatenate([part.polygons for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.difficult for part in parts]),
    )
    corners, labels = objects.polygons.reshape(-1, 8), objects.labels
    kept: list[int] = []
    for index in np.lexsort((corners[:, 0], labels)).tolist():
        near = takewhile(partial(_may_repeat, corners, labels, index), reversed(kept))
        if not any(np.abs(corners[k] - corners[index]).max() <= SAME for k in near):
            kept.append(index)
    return objects.select(np.array(kept, np.int64))


def _may_repeat(corners: np.ndarray, labels: np.ndarray, index: int, earlier: int) -> bool:
    return bool(labels[earlier] == labels[index] and corners[index, 0] - corners[earlier, 0] <= SAME)
