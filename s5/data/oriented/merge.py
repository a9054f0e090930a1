"""Put windows of an image together again: their detections by rotated NMS, and their objects.

The name of a window says where it lies: `<image>__<size>__<x>___<y>`, the offsets in pixels of the image,
as mmrotate's tool and `python -m s5.data.prepare dota` cut. In names of DOTA's own development kit, a rate
(such as 1 or 0.5) stands in place of the size, by which the image was resized before it was cut: offsets
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
LARGEST_RATE = 16  # no window is as small, and no image is enlarged as much
SAME = 0.25  # pixels, by which coordinates of one object may differ between windows
_WINDOW = re.compile(r"(?P<image>.+)__(?P<size>\d+(?:\.\d+)?)__(?P<x>\d+)___(?P<y>\d+)")


class Place(NamedTuple):
    """Where a window lies.

    Attributes:
        image: Name of the image.
        x: Offset in pixels of the window.
        y: Likewise.
        rate: Pixels of the window per pixel of the image.
    """

    image: str
    x: int = 0
    y: int = 0
    rate: float = 1.0


def window_name(image: str, size: int, x: int, y: int) -> str:
    """Name of the window of `size` pixels at column `x` and row `y` of an image."""
    return f"{image}__{size}__{x}___{y}"


def place_of(name: str) -> Place:
    """Where the window of a name lies; an image of another name is whole."""
    parts = _WINDOW.fullmatch(name)
    if parts is None:
        return Place(name)
    size = float(parts["size"])
    rate = size if 0 < size < LARGEST_RATE else 1.0
    return Place(parts["image"], int(parts["x"]), int(parts["y"]), rate)


def merge_windows(
    windows: Iterable[tuple[str, Detections]], threshold: float = NMS_THRESHOLD
) -> dict[str, Detections]:
    """Detections of whole images from those of windows.

    Of boxes of one class that overlap, the one of the highest score stays. Memory is that of the detections.

    Args:
        windows: Name and detections of each, in pixels of the window, in any order.
        threshold: IoU above which the box of lower score goes.

    Returns:
        By name of the image, in the order of the names; detections by falling score.
    """
    parts: dict[str, list[tuple[str, Detections]]] = defaultdict(list)
    for name, found in windows:
        place = place_of(name)
        boxes = found.boxes.copy()
        boxes[:, :2] += np.array([place.x, place.y], np.float32)
        boxes[:, :4] /= np.float32(place.rate)
        parts[place.image].append((name, found._replace(boxes=boxes)))
    return {image: _suppress(parts[image], threshold) for image in sorted(parts)}


def merge_objects(windows: Iterable[tuple[str, Objects]]) -> dict[str, Objects]:
    """Objects of whole images from those of overlapping windows, which were not clipped.

    An object that no window has, as one much larger than the windows, is missing: where the annotations of
    the whole images are at hand, use them.

    Returns:
        By name of the image, in the order of the names.
    """
    parts: dict[str, list[Objects]] = defaultdict(list)
    for name, objects in windows:
        place = place_of(name)
        polygons = (objects.polygons + np.array([place.x, place.y], np.float32)) / np.float32(place.rate)
        parts[place.image].append(Objects(polygons, objects.labels, objects.difficult))
    return {image: _without_repeats(parts[image]) for image in sorted(parts)}


def _suppress(windows: list[tuple[str, Detections]], threshold: float) -> Detections:
    windows.sort(key=lambda window: window[0])  # among equal scores, the result depends on the order
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
