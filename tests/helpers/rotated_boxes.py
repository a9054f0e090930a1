"""Rotated boxes to test with, and their exact overlap."""

import itertools
import math

import numpy as np
import shapely
import torch
from torch import Tensor

UNIT_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def random_boxes(
    count: int, span: float = 100, sizes: tuple[float, float] = (1, 60), seed: int = 0
) -> Tensor:
    """Boxes (count, 5) with centres in a square and any angle."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 5, generator=generator)
    low = torch.tensor([0, 0, sizes[0], sizes[0], -math.pi])
    high = torch.tensor([span, span, sizes[1], sizes[1], math.pi])
    return low + draws * (high - low)


def extreme_boxes(count: int, dtype: torch.dtype) -> Tensor:
    """Boxes (count, 5) of the largest and the smallest numbers, without area, far away, turned many times."""
    limits = torch.finfo(dtype)
    places = [0, 1e7, -1e7, 1e30, 1e-30, limits.max, -limits.max]
    sizes = [0, -5, 1, 40, 1e7, 1e-30, 1e30, limits.tiny, limits.max, -limits.max]
    angles = [0, 1.5, -1e6, 1e30]
    boxes = torch.tensor(list(itertools.product(places, places[:3], sizes, sizes, angles)), dtype=dtype)
    return boxes[torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[:count]]


def exact_overlap(boxes1: Tensor, boxes2: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoF of pairs of boxes in float64."""
    origin = boxes1[:, :2].double()
    first, second = (polygons(boxes, origin) for boxes in (boxes1, boxes2))
    area1, area2 = ((boxes[:, 2].double() * boxes[:, 3].double()).numpy() for boxes in (boxes1, boxes2))
    shared = shapely.area(shapely.intersection(first, second))
    # GEOS finds no intersection of some boxes that differ in the last digit only; their union it does find.
    lost = (shared == 0) & (area1 + area2 > 0)
    shared[lost] = (area1 + area2)[lost] - shapely.area(shapely.union(first[lost], second[lost]))
    return shared / (area1 + area2 - shared), shared / area1


def polygons(boxes: Tensor, origin: Tensor) -> np.ndarray:
    """Polygons of boxes (N, 5), each seen from its own origin (N, 2): far ones are as exact as others."""
    boxes = torch.cat((boxes[:, :2].double() - origin, boxes[:, 2:].double()), dim=1)
    x, y, w, h, theta = boxes.numpy().T[..., None]
    u, v = UNIT_CORNERS[:, 0] * w, UNIT_CORNERS[:, 1] * h
    cos, sin = np.cos(theta), np.sin(theta)
    corners = np.stack((x + u * cos - v * sin, y + u * sin + v * cos), axis=-1)
    return shapely.polygons(corners)
