"""Small generated datasets of oriented objects."""

import math
from pathlib import Path

import cv2
import numpy as np

from s5.data.image_io import write_image
from s5.data.oriented.annotations import Objects, make_objects, write_objects
from s5.data.oriented.detections import Detections, make_detections
from s5.data.oriented.geometry import to_polygons

CLASSES = ("ship", "plane", "storage-tank")


def rectangles(count: int, height: int, width: int, seed: int = 0, classes: int = len(CLASSES)) -> Objects:
    """Rotated rectangles with their centres in an image, corners of one decimal, every sixth difficult."""
    rng = np.random.default_rng(seed)
    boxes = np.stack(
        [
            rng.uniform(0, width, count),
            rng.uniform(0, height, count),
            rng.uniform(8, width / 4, count),
            rng.uniform(4, width / 8, count),
            rng.uniform(-math.pi / 2, math.pi / 2, count),
        ],
        1,
    )
    difficult = [i % 6 == 5 for i in range(count)]
    return make_objects(to_polygons(boxes).round(1), rng.integers(classes, size=count).tolist(), difficult)


def paint(objects: Objects, height: int, width: int) -> np.ndarray:
    """Image (H, W, 3) in which each object is a filled white rectangle."""
    image = np.zeros((height, width, 3), np.uint8)
    for polygon in objects.polygons:
        # OpenCV's coordinates are those of pixel centres
        cv2.fillPoly(image, [np.round((polygon - 0.5) * 16).astype(np.int32)], (255, 255, 255), shift=4)
    return image


def write_pair(folder: Path, name: str, objects: Objects, height: int = 40, width: int = 64) -> None:
    """Write ``images/NAME.png`` and ``labels/NAME.txt``."""
    write_image(folder / f"images/{name}.png", paint(objects, height, width))
    write_objects(folder / f"labels/{name}.txt", objects, CLASSES)


def write_set(
    folder: Path, count: int = 4, objects: int = 5, height: int = 40, width: int = 64
) -> list[Objects]:
    """Images ``a0``, ``a1`` ... with their objects."""
    sets = [rectangles(objects, height, width, seed=i) for i in range(count)]
    for i, part in enumerate(sets):
        write_pair(folder, f"a{i}", part, height, width)
    return sets


def xml(objects: list[tuple[str, list[float]]], difficult: int = 0) -> str:
    """An annotation as DIOR-R has it."""
    from s5.data.oriented.annotations import CORNER_TAGS

    nodes = []
    for name, corners in objects:
        box = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in zip(CORNER_TAGS, corners, strict=True))
        nodes.append(
            f"<object><name>{name}</name><truncated>1</truncated><difficult>{difficult}</difficult>"
            f"<robndbox>{box}</robndbox><angle>0</angle></object>"
        )
    return f"<annotation><size><width>64</width></size>{''.join(nodes)}</annotation>"


def detect(objects: Objects, seed: int = 0, classes: int = len(CLASSES)) -> Detections:
    """What a fair detector would find: objects, moved a little, some twice or of another class; and more."""
    rng = np.random.default_rng(seed)
    boxes = objects.boxes
    chosen = rng.integers(len(objects), size=2 * len(objects)) if len(objects) else np.zeros(0, int)
    moved = boxes[chosen] + rng.normal(0, 1, (len(chosen), 5)) * [0.6, 0.6, 0.5, 0.5, 0.03] * rng.integers(
        0, 4
    )
    labels = np.where(
        rng.random(len(chosen)) < 0.8, objects.labels[chosen], rng.integers(classes, size=len(chosen))
    )
    invented = rng.uniform([0, 0, 5, 3, -1], [60, 40, 20, 10, 1], (3, 5))
    boxes = np.concatenate([moved, invented])
    boxes[:, 2:4] = boxes[:, 2:4].clip(1)
    labels = np.concatenate([labels, rng.integers(classes, size=3)])
    return make_detections(boxes, rng.permutation(len(boxes)) / len(boxes) + seed * 1e-4, labels)
