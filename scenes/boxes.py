"""Rotated boxes (cx, cy, w, h, theta, class): canonical form, corners, DOTA text, drawing."""

import cv2
import numpy as np

from scenes.classes import BOX_CLASSES, TABLE


def canonical(boxes: np.ndarray, size: int, share: float = 0.5) -> np.ndarray:
    """Bring boxes (N, 6) to w >= h and theta in [-pi/2, pi/2); drop those with less than `share` in view."""
    out = np.array(boxes, np.float64)
    swap = out[:, 2] < out[:, 3]
    out[swap, 2], out[swap, 3] = out[swap, 3], out[swap, 2]
    out[swap, 4] += np.pi / 2
    out[:, 4] = (out[:, 4] + np.pi / 2) % np.pi - np.pi / 2
    return out[visible_share(out, size) >= share].astype(np.float32)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (N, 4, 2) of boxes (N, 6), in the sense of rotation from (-w/2, -h/2)."""
    unit = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    local = unit * boxes[:, None, 2:4]
    c, s = np.cos(boxes[:, 4, None]), np.sin(boxes[:, 4, None])
    x = local[..., 0] * c - local[..., 1] * s
    y = local[..., 0] * s + local[..., 1] * c
    return np.stack([x, y], -1) + boxes[:, None, :2]


def visible_share(boxes: np.ndarray, size: int) -> np.ndarray:
    """Share (N,) of the area of each box that lies inside an image of `size` pixels."""
    frame = np.array([(0, 0), (size, 0), (size, size), (0, size)], np.float32)
    inside = [cv2.intersectConvexConvex(p.astype(np.float32), frame)[0] for p in corners(boxes)]
    return np.array(inside, np.float64).reshape(-1) / (boxes[:, 2] * boxes[:, 3])


def dota_lines(boxes: np.ndarray, size: int) -> str:
    """Return the boxes as DOTA label text; difficulty 1 marks boxes that the image border cuts."""
    cut = visible_share(boxes, size) < 0.8
    lines = []
    for polygon, label, difficult in zip(corners(boxes), boxes[:, 5], cut, strict=True):
        numbers = " ".join(f"{value:.2f}" for value in polygon.ravel())
        lines.append(f"{numbers} {BOX_CLASSES[int(label)]} {int(difficult)}\n")
    return "".join(lines)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, zoom: int = 1) -> np.ndarray:
    """Return a copy of the image (H, W, 3) with the boxes, given in pixels / `zoom`, outlined by class."""
    out = image.copy()
    for polygon, label in zip(corners(boxes), boxes[:, 5], strict=True):
        points = np.round((polygon * zoom - 0.5) * 16).astype(np.int32)
        cv2.polylines(out, [points], True, TABLE.palette[int(label)], 1, cv2.LINE_AA, 4)
    return out
