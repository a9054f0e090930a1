"""Windows put together to whole images."""

import numpy as np
import pytest

from s5.data.oriented.annotations import Objects, make_objects
from s5.data.oriented.detections import concatenate, make_detections
from s5.data.oriented.geometry import share_inside
from s5.data.oriented.merge import (
    WindowPosition,
    merge_objects,
    merge_windows,
    parse_window_name,
    window_name,
)
from s5.data.prepare.patches import windows
from tests.helpers.oriented_data import rectangles


def test_names():
    assert parse_window_name("P0861__1024__0___1648") == WindowPosition("P0861", 0, 1648)
    assert parse_window_name("P1478__1__853___962") == WindowPosition("P1478", 853, 962, 1.0), "dev kit"
    assert parse_window_name("P1478__0.5__100___20") == WindowPosition("P1478", 100, 20, 0.5)
    assert parse_window_name("sub/a__b__512__10___20") == WindowPosition("sub/a__b", 10, 20)
    assert parse_window_name("P0003") == WindowPosition("P0003")
    assert parse_window_name("a__1__2") == WindowPosition("a__1__2")
    assert parse_window_name(window_name("x", 682, 3, 4)) == WindowPosition("x", 3, 4)


def cut(boxes, scores, labels, size=40, gap=16, length=100):
    """Windows of a square image with the detections whose centre they have."""
    for window in windows(length, length, size, gap):
        inside = (boxes[:, 0] >= window.left) & (boxes[:, 0] < window.left + size)
        inside &= (boxes[:, 1] >= window.top) & (boxes[:, 1] < window.top + size)
        moved = boxes[inside] - [window.left, window.top, 0, 0, 0]
        name = window_name("city", size, window.left, window.top)
        yield name, make_detections(moved, scores[inside], labels[inside])


def scattered(seed=0):
    """Boxes that do not overlap, with different scores."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[5:100:12, 5:100:12]
    boxes = np.stack([x.ravel(), y.ravel(), *np.full((2, x.size), 6.0), rng.uniform(-1, 1, x.size)], 1)
    boxes[:, 2] += 2
    return boxes, rng.permutation(x.size) / x.size, rng.integers(3, size=x.size)


def test_windows_give_each_object_once():
    boxes, scores, labels = scattered()
    parts = list(cut(boxes, scores, labels))
    assert sum(len(part.scores) for _, part in parts) > 1.5 * len(scores), "windows overlap"
    merged = merge_windows(parts)
    assert list(merged) == ["city"]
    order = np.argsort(-scores)
    assert merged["city"].boxes == pytest.approx(boxes[order], abs=1e-4)
    assert merged["city"].labels.tolist() == labels[order].tolist()
    assert merged["city"].scores == pytest.approx(scores[order])


def test_order_of_windows_does_not_matter():
    boxes, scores, labels = scattered()
    scores = scores.round(1)  # equal ones
    boxes = np.concatenate([boxes, boxes + [1, 1, 0, 0, 0]])
    parts = list(cut(boxes, np.tile(scores, 2), np.tile(labels, 2)))
    first, second = merge_windows(parts)["city"], merge_windows(parts[::-1])["city"]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first.scores) == len(scores)


def test_suppression_is_by_class_and_score():
    box = [20, 20, 10, 6, 0.3]
    parts = [
        ("a__64__0___0", make_detections([box, box], [0.5, 0.6], [0, 1])),
        ("a__64__10___0", make_detections([[10, *box[1:]]], [0.9], [0])),
        ("b__64__0___0", make_detections([box], [0.1], [0])),
    ]
    merged = merge_windows(parts)
    assert merged["a"].scores == pytest.approx([0.9, 0.6]) and merged["a"].labels.tolist() == [0, 1]
    assert merged["b"].scores == pytest.approx([0.1]), "another image"
    assert len(merge_windows(parts, threshold=1)["a"].scores) == 3


def test_windows_of_a_resized_image():
    found = make_detections([[10, 20, 8, 4, 0.3]], [0.5], [0])
    merged = merge_windows([("a__0.5__100___20", found)])
    assert merged["a"].boxes[0] == pytest.approx([220, 80, 16, 8, 0.3])


def test_nothing_found_is_an_image_without_detections():
    merged = merge_windows([("a__64__0___0", make_detections()), ("a__64__48___0", make_detections())])
    assert merged["a"].boxes.shape == (0, 5)
    assert merge_windows([]) == {} and concatenate([]).scores.shape == (0,)


def test_objects_of_overlapping_windows_are_counted_once():
    whole = rectangles(60, 100, 100, classes=2)
    crowd = whole.polygons[:5] + np.float32(0.6)  # others, close to the first ones
    other = whole.polygons[5:8]  # of another class at the same place
    whole = make_objects(
        np.concatenate([whole.polygons, crowd, other]),
        np.concatenate([whole.labels, whole.labels[:5], 1 - whole.labels[5:8]]),
        np.concatenate([whole.difficult, whole.difficult[:8]]),
    )
    parts = []
    for left in (0, 20, 40):
        inside = share_inside(whole.polygons, (left, 0, left + 60, 100)) >= 0.7
        kept = whole.select(inside)
        offset = np.array([left, 0], np.float32)
        parts.append(
            (window_name("a", 60, left, 0), Objects(kept.polygons - offset, kept.labels, kept.difficult))
        )
    reachable = np.any(
        [share_inside(whole.polygons, (left, 0, left + 60, 100)) >= 0.7 for left in (0, 20, 40)], 0
    )
    merged = merge_objects(parts)["a"]
    expected = whole.select(reachable)
    assert len(merged) == len(expected) < sum(len(part) for _, part in parts)
    for one in ("labels", "difficult"):
        assert np.bincount(getattr(merged, one)).tolist() == np.bincount(getattr(expected, one)).tolist()
    rows = sorted(map(tuple, merged.polygons.reshape(-1, 8).round(1).tolist()))
    assert rows == sorted(map(tuple, expected.polygons.reshape(-1, 8).round(1).tolist()))


def test_no_objects():
    assert len(merge_objects([("a__64__0___0", make_objects())])["a"]) == 0


def test_objects_of_two_classes_at_one_place_stay():
    square = [1, 1, 9, 1, 9, 9, 1, 9]
    objects = make_objects([square, square, square], [0, 1, 1], [False] * 3)
    assert merge_objects([("a__64__0___0", objects)])["a"].labels.tolist() == [0, 1]
