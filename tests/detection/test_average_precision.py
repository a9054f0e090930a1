"""Average precision against counting by hand, and against mmrotate."""

import numpy as np
import pytest
import torch

from s5.data.oriented.annotations import Objects, make_objects
from s5.data.oriented.detections import Detections, make_detections
from s5.data.oriented.geometry import to_polygons
from s5.detection.metric import THRESHOLDS, Matches, average_precision, match
from s5.ops.rotated_iou import rotated_iou
from tests.helpers.oriented_data import CLASSES, detect, rectangles

K = len(CLASSES)
BOX = [20, 20, 10, 6, 0.4]


def objects_of(boxes, labels=None, difficult=None) -> Objects:
    count = len(boxes)
    polygons = to_polygons(np.array(boxes, float).reshape(-1, 5))
    return make_objects(polygons, labels or [0] * count, difficult or [False] * count)


def found_of(boxes, scores, labels=None) -> Detections:
    return make_detections(boxes, scores, labels or [0] * len(boxes))


def moved(amount: float) -> list[float]:
    """The box moved along its first axis."""
    return [20 + amount * np.cos(0.4), 20 + amount * np.sin(0.4), 10, 6, 0.4]


def outcomes(found, objects, threshold=0.5):
    return match(found, objects, K, [threshold]).outcomes[0].tolist()


def curve(outcome, objects):
    """Average precision of one class from outcomes by falling score."""
    scores = np.linspace(1, 0.1, len(outcome), dtype=np.float32)
    rows = np.array([outcome] * len(THRESHOLDS), np.int8).reshape(len(THRESHOLDS), -1)
    parts = [Matches(scores, np.zeros(len(outcome), int), rows, np.array([objects]))]
    precision = average_precision(parts, 1)
    return precision.eleven_points[0, 0], precision.area[0, 0]


def test_first_is_right_further_ones_are_wrong():
    found = found_of([moved(1), BOX, moved(40)], [0.5, 0.9, 0.8])
    assert outcomes(found, objects_of([BOX])) == [0, 1, 0]


def test_threshold_is_met_by_equality_and_missed_below():
    found = found_of([moved(10 / 3)], [0.9])  # IoU (2/3) / (4/3)
    iou = float(rotated_iou(torch.from_numpy(found.boxes), torch.tensor([BOX]).float()))
    assert iou == pytest.approx(0.5, abs=1e-6)
    assert outcomes(found, objects_of([BOX]), 0.499) == [1]
    assert outcomes(found, objects_of([BOX]), 0.501) == [0]
    assert outcomes(found_of([BOX], [0.9]), objects_of([BOX]), 0.95) == [1]


def test_class_decides():
    found = found_of([BOX, BOX, BOX], [0.9, 0.8, 0.7], [1, 0, 2])
    assert outcomes(found, objects_of([BOX, BOX], [0, 2])) == [0, 1, 1]


def test_difficult_objects_count_as_nothing():
    objects = objects_of([BOX, [60, 20, 10, 6, 0]], difficult=[True, False])
    found = found_of([BOX, moved(0.5), [60, 20, 10, 6, 0]], [0.9, 0.8, 0.7])
    result = match(found, objects, K)
    assert result.outcomes[0].tolist() == [-1, -1, 1] and result.objects.tolist() == [1, 0, 0]
    assert average_precision([result], K).eleven_points[0, 0] == pytest.approx(1)


def test_object_of_the_largest_overlap_decides_though_it_is_taken():
    """As the development kits do it: the second detection is nearest to the first object, and so wrong."""
    objects = objects_of([BOX, moved(4)])
    found = found_of([BOX, moved(1)], [0.9, 0.8])
    assert outcomes(found, objects, 0.4) == [1, 0]


def test_boxes_that_are_the_same_rectangle_meet():
    turned = [20, 20, 6, 10, 0.4 + np.pi / 2]
    assert outcomes(found_of([turned], [0.9]), objects_of([BOX]), 0.95) == [1]


def test_detections_that_are_no_boxes_are_wrong():
    found = found_of([[np.nan] * 5, [20, 20, -3, 5, 0], BOX], [0.9, 0.8, 0.7])
    assert outcomes(found, objects_of([BOX])) == [0, 0, 1]


@pytest.mark.parametrize(
    ("outcome", "objects", "eleven", "area"),
    [
        ([1, 1], 2, 1, 1),
        ([], 2, 0, 0),
        ([0, 0], 2, 0, 0),
        ([1], 2, 6 / 11, 0.5),  # recalls 0 to 0.5
        ([0, 1], 1, 0.5, 0.5),
        ([1, 0, 1], 2, (6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
        ([1, -1, -1, 1], 2, 1, 1),
        ([1, 1, 1], 10, 3 / 11, 0.3),  # 3 / 10 < 0.1 + 0.1 + 0.1, as in the development kits
        ([0, 1, 1], 2, 2 / 3, 2 / 3),  # the precision of a recall is the best from there on
    ],
)
def test_known_curves(outcome, objects, eleven, area):
    assert curve(outcome, objects) == pytest.approx((eleven, area))


def test_class_without_objects_has_no_score():
    precision = average_precision([match(found_of([BOX], [0.9], [1]), objects_of([BOX]), K)], K)
    assert precision.eleven_points[0, 0] == 0
    assert np.isnan(precision.eleven_points[1:]).all() and precision.detections.tolist() == [0, 1, 0]
    assert np.isnan(average_precision([], K).area).all()


def dataset(images, count, seed=0):
    parts = [rectangles(count if i % 5 else 0, 40, 64, seed + i) for i in range(images)]
    return parts, [detect(objects, seed + i) for i, objects in enumerate(parts)]


def plain_match(found, objects, threshold):
    """The rule, one detection after the other."""
    result, taken = np.zeros(len(found.scores), int), set()
    boxes = torch.from_numpy(objects.boxes).double()
    for i in np.argsort(-found.scores, kind="stable"):
        own = [j for j in range(len(objects)) if objects.labels[j] == found.labels[i]]
        if not own:
            continue
        ious = rotated_iou(torch.from_numpy(found.boxes[i : i + 1]).double(), boxes[own])[0]
        best = own[int(ious.argmax())]
        if ious.max() >= threshold:
            result[i] = -1 if objects.difficult[best] else int(best not in taken)
            taken.add(best)
    return result


def test_matching_equals_the_plain_rule():
    for objects, found in zip(*dataset(12, 14), strict=True):
        rows = match(found, objects, K).outcomes
        for row, threshold in zip(rows, THRESHOLDS, strict=True):
            assert np.array_equal(row, plain_match(found, objects, threshold))


def test_order_of_images_does_not_matter():
    parts = [match(found, objects, K) for objects, found in zip(*dataset(10, 10), strict=True)]
    first, second = average_precision(parts, K), average_precision(parts[::-1], K)
    assert first.eleven_points == pytest.approx(second.eleven_points)
    assert first.area == pytest.approx(second.area)


class Pool:
    """In place of the processes that mmrotate starts for the same work."""

    def __init__(self, *args):
        pass

    def starmap(self, function, arguments):
        return [function(*values) for values in arguments]

    def close(self):
        pass


def truth_for_mmrotate(objects: Objects) -> dict:
    return {
        "bboxes": objects.boxes[~objects.difficult],
        "labels": objects.labels[~objects.difficult],
        "bboxes_ignore": objects.boxes[objects.difficult],
        "labels_ignore": objects.labels[objects.difficult],
    }


def found_for_mmrotate(found: Detections) -> list[np.ndarray]:
    return [np.c_[found.boxes, found.scores][found.labels == label].astype(np.float32) for label in range(K)]


@pytest.fixture
def mean_ap(monkeypatch):
    """mmrotate's evaluation in this process."""
    module = pytest.importorskip("mmrotate.evaluation.functional.mean_ap")
    monkeypatch.setattr(module, "get_context", lambda kind: type("Context", (), {"Pool": Pool}))
    return module


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.95])
@pytest.mark.parametrize("by_points", [True, False])
def test_equals_mmrotate(mean_ap, threshold, by_points):
    sets, detections = dataset(24, 16, seed=100)
    annotations = [truth_for_mmrotate(objects) for objects in sets]
    results = [found_for_mmrotate(found) for found in detections]
    mean, classes = mean_ap.eval_rbbox_map(
        results, annotations, iou_thr=threshold, use_07_metric=by_points, logger="silent", nproc=1
    )
    precision = average_precision(
        [match(found, objects, K) for objects, found in zip(sets, detections, strict=True)], K
    )
    own = (precision.eleven_points if by_points else precision.area)[:, THRESHOLDS.index(threshold)]
    assert own == pytest.approx([c["ap"] for c in classes], abs=1e-6)
    assert own.mean() == pytest.approx(mean, abs=1e-6)
    assert precision.objects.tolist() == [c["num_gts"] for c in classes]
    assert precision.detections.tolist() == [c["num_dets"] for c in classes]
    if threshold == 0.5:
        assert 0.2 < mean < 0.9, "neither is trivial"


def test_image_of_difficult_objects_alone(mean_ap):
    """mmrotate forgets difficult objects where there are no others, and takes what meets them for wrong."""
    sets = [objects_of([BOX], difficult=[True]), objects_of([BOX])]
    detections = [found_of([BOX], [0.9]), found_of([BOX], [0.8])]
    mean, _ = mean_ap.eval_rbbox_map(
        [found_for_mmrotate(found) for found in detections],
        [truth_for_mmrotate(objects) for objects in sets],
        logger="silent",
    )
    parts = [match(found, objects, K) for found, objects in zip(detections, sets, strict=True)]
    assert mean == pytest.approx(0.5)
    assert average_precision(parts, K).eleven_points[0, 0] == pytest.approx(1)
