"""Quadrilaterals and rotated boxes."""

import math

import cv2
import numpy as np
import pytest
import torch

from s5.data.oriented.geometry import (
    enclosing_boxes,
    flip_polygons,
    regular_boxes,
    share_inside,
    to_boxes,
    to_polygons,
)
from s5.ops.rotated_iou import rotated_iou


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = [-50, -50, 1, 1, -10], [150, 150, 80, 40, 10]
    return rng.uniform(low, high, (count, 5))


def convex_quads(count: int, seed: int = 0) -> np.ndarray:
    """Corners on random ellipses, in the order of their angles."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, (count, 4)), 1)
    points = np.stack([np.cos(angles), np.sin(angles)], -1) * rng.uniform(2, 60, (count, 1, 2))
    return points + rng.uniform(-50, 150, (count, 1, 2))


def test_known_boxes():
    """Upright, standing, turned by 30 degrees clockwise on the screen; each started at another corner."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turned = np.array([[0, 0], [10 * c, 10 * s], [10 * c - 4 * s, 10 * s + 4 * c], [-4 * s, 4 * c]])
    polygons = np.array(
        [
            [[1, 2], [11, 2], [11, 6], [1, 6]],
            [[6, 2], [6, 12], [2, 12], [2, 2]],
            np.roll(turned, 1, 0),
            turned[::-1],
        ]
    )
    center = turned.mean(0)
    expected = [
        [6, 4, 10, 4, 0],
        [4, 7, 10, 4, -math.pi / 2],
        [*center, 10, 4, math.pi / 6],
        [*center, 10, 4, math.pi / 6],
    ]
    assert to_boxes(polygons) == pytest.approx(np.array(expected), abs=1e-5)


def test_positive_angle_turns_clockwise_on_the_screen():
    polygon = to_polygons(np.array([[50.0, 50, 40, 10, math.pi / 4]]))[0]
    image = cv2.fillPoly(np.zeros((100, 100), np.uint8), [polygon.round().astype(np.int32)], 1)
    assert image[62, 62] and image[38, 38], "from top left to bottom right"
    assert not image[38, 62] and not image[62, 38]


def test_round_trip_keeps_le90_boxes():
    boxes = regular_boxes(random_boxes(500))
    assert (boxes[:, 2] >= boxes[:, 3]).all()
    assert (boxes[:, 4] >= np.float32(-math.pi / 2)).all() and (boxes[:, 4] < np.float32(math.pi / 2)).all()
    assert to_boxes(to_polygons(boxes.astype(np.float64))) == pytest.approx(boxes, abs=1e-4)


def test_regular_boxes_are_the_same_rectangles():
    boxes = random_boxes(200)
    first, second = (torch.from_numpy(part).double() for part in (boxes, regular_boxes(boxes)))
    assert rotated_iou(first, second, aligned=True).numpy() == pytest.approx(1, abs=1e-5)


def test_angle_does_not_round_to_the_open_end():
    almost = np.array([[0, 0, 2, 1, math.pi / 2 - 1e-9], [0, 0, 2, 1, math.pi / 2], [0, 0, 1, 2, 1e-12]])
    assert (regular_boxes(almost)[:, 4] == np.float32(-math.pi / 2)).all()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3]])
def test_smallest_rectangle_of_quadrilaterals(order):
    """No direction in steps of a tenth of a degree gives a smaller one, and it holds all corners."""
    polygons = np.concatenate([convex_quads(200), np.random.default_rng(1).uniform(0, 50, (50, 4, 2))])
    polygons = polygons[:, order]
    boxes = to_boxes(polygons).astype(np.float64)
    for angle in np.arange(0, math.pi / 2, math.radians(0.1)):
        turned = polygons @ np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        assert (boxes[:, 2] * boxes[:, 3] <= np.ptp(turned, axis=1).prod(1) * (1 + 1e-5)).all()
    grown = boxes * [1, 1, 1, 1, 1] + [0, 0, 0.01, 0.01, 0]
    for polygon, box in zip(polygons, to_polygons(grown), strict=True):
        hull = box.astype(np.float32)
        assert all(cv2.pointPolygonTest(hull, tuple(map(float, point)), False) >= 0 for point in polygon)


def test_far_from_the_origin_no_digits_are_lost():
    polygons = to_polygons(np.array([[20000.0, 15000, 12, 5, 0.3]]))
    assert to_boxes(polygons)[0] == pytest.approx([20000, 15000, 12, 5, 0.3], abs=1e-3)


def test_order_of_corners_does_not_matter():
    boxes = regular_boxes(random_boxes(50))
    polygons = to_polygons(boxes.astype(np.float64))
    assert to_boxes(polygons[:, [0, 2, 1, 3]]) == pytest.approx(boxes, abs=1e-4)


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_flips_are_those_of_the_pixels(horizontal, vertical):
    height, width = 60, 90
    polygon = np.array([[[10.0, 20], [70, 30], [65, 50], [5, 40]]])
    image = cv2.fillPoly(np.zeros((height, width), np.uint8), [(polygon[0]).astype(np.int32)], 255)
    image = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    flipped = flip_polygons(polygon, height, width, horizontal, vertical)
    expected = cv2.fillPoly(np.zeros((height, width), np.uint8), [flipped[0].astype(np.int32)], 255)
    assert (image != expected).mean() < 0.04, "but for the edge"
    assert (polygon[0, 0] == [10, 20]).all(), "the original is left alone"


def test_enclosing_boxes():
    polygons = np.array([[[3, 1], [7, 4], [4, 8], [0, 5]]])
    assert enclosing_boxes(polygons).tolist() == [[0, 1, 7, 8]]


def test_share_inside_of_rectangles_equals_rotated_overlap():
    boxes = regular_boxes(random_boxes(300)).astype(np.float64)
    window = torch.tensor([[50.0, 30, 100, 60, 0]]).double()
    expected = rotated_iou(torch.from_numpy(boxes), window, mode="iof")[:, 0].numpy()
    found = share_inside(to_polygons(boxes), (0, 0, 100, 60))
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.1 < (found > 0).mean() < 1 and (found == 1).any()


def test_share_inside_of_quadrilaterals_equals_exact_geometry():
    shapely = pytest.importorskip("shapely.geometry")
    polygons = convex_quads(300)
    window = shapely.box(0, 0, 100, 60)
    expected = [shapely.Polygon(p).intersection(window).area / shapely.Polygon(p).area for p in polygons]
    assert share_inside(polygons, (0, 0, 100, 60)) == pytest.approx(expected, abs=1e-9)
    assert share_inside(polygons[:, [0, 2, 1, 3]], (0, 0, 100, 60)) == pytest.approx(expected, abs=1e-9)


def test_share_inside_of_what_has_no_area():
    line = np.array([[[0.0, 0], [10, 10], [10, 10], [0, 0]]])
    assert share_inside(line, (0, 0, 100, 60)).tolist() == [0]


def test_nothing():
    none = np.zeros((0, 4, 2))
    assert to_boxes(none).shape == (0, 5) and share_inside(none, (0, 0, 1, 1)).shape == (0,)
    assert to_polygons(np.zeros((0, 5))).shape == (0, 4, 2)
