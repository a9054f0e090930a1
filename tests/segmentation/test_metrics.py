"""The metric of validation against counting with numpy."""

import logging
import math

import numpy as np
import pytest
import torch

from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.segmentation.metrics import SegmentationMetric

NAMES = ["sea", "sand", "reef", "wood"]
TABLE = get_table({"name": "coast", "classes": NAMES, "background": 0})


def images(seed: int, count: int, absent: tuple[int, ...] = ()) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and labels of images of different sizes, a tenth of the pixels ignored."""
    rng = np.random.default_rng(seed)
    classes = [c for c in range(len(NAMES)) if c not in absent]
    predictions, labels = [], []
    for _ in range(count):
        shape = tuple(rng.integers(5, 40, 2))
        label = rng.choice(classes, shape).astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.6, label, rng.choice(classes, shape)).astype(np.uint8)
        label[rng.random(shape) < 0.1] = 255
        predictions.append(prediction)
        labels.append(label)
    return predictions, labels


def process(metric: SegmentationMetric, predictions: list[np.ndarray], labels: list[np.ndarray]) -> None:
    batch = {"labels": [torch.from_numpy(x) for x in labels], "tasks": ["coast"] * len(labels)}
    metric.process(batch, [torch.from_numpy(x) for x in predictions])


def counted(predictions: list[np.ndarray], labels: list[np.ndarray], background: int = 0) -> dict[str, float]:
    """The scores in percent, pixel by pixel."""
    prediction, label = (np.concatenate([x.ravel() for x in xs]) for xs in (predictions, labels))
    prediction, label = prediction[label != 255], label[label != 255]
    result: dict[str, float] = {}
    iou, f1, acc = {}, {}, {}
    for c, name in enumerate(NAMES):
        hit = np.sum((prediction == c) & (label == c))
        said, true = np.sum(prediction == c), np.sum(label == c)
        if said + true:
            iou[c] = hit / (said + true - hit)
            f1[c] = 2 * hit / (said + true)
        if true:
            acc[c] = hit / true
        result[f"IoU.{name}"] = 100 * iou.get(c, math.nan)
        result[f"F1.{name}"] = 100 * f1.get(c, math.nan)
    for name, values in (("mIoU", iou), ("mF1", f1), ("mAcc", acc)):
        result[name] = 100 * float(np.mean(list(values.values())))
        kept = [value for c, value in values.items() if c != background]
        result[f"{name}_no_background"] = 100 * float(np.mean(kept))
    result["aAcc"] = 100 * float(np.mean(prediction == label))
    result["aAcc_no_background"] = 100 * float(np.mean((prediction == label)[label != background]))
    return result


@pytest.mark.parametrize("absent", [(), (2,), (1, 3)])
def test_equals_counting(absent: tuple[int, ...]) -> None:
    predictions, labels = images(0, 5, absent)
    metric = SegmentationMetric(TABLE, "coast")
    process(metric, predictions[:3], labels[:3])
    process(metric, predictions[3:], labels[3:])
    found, expected = metric.evaluate(5), counted(predictions, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert all(math.isnan(found[f"IoU.{NAMES[c]}"]) for c in absent)


def test_every_task_has_its_own_scores() -> None:
    first, second = images(0, 2), images(1, 3)
    batch = {
        "labels": [torch.from_numpy(x) for x in first[1] + second[1]],
        "tasks": ["coast"] * 2 + ["inland"] * 3,
    }
    expected = {"coast": counted(*first), "inland": counted(*second)}
    found = {}
    for task in expected:
        metric = SegmentationMetric(TABLE, task, prefix=task)
        metric.process(batch, [torch.from_numpy(x) for x in first[0] + second[0]])
        found |= metric.evaluate(5)
        assert int(metric.matrix.sum()) == sum((x != 255).sum() for x in (first, second)[task == "inland"][1])
    for task, scores in expected.items():
        assert {name: found[f"{task}/{name}"] for name in scores} == pytest.approx(scores)
    assert not [name for name in found if "/" not in name]


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    predictions, labels = images(0, 2, absent=(2,))
    predictions[0][0, 0], labels[0][0, 0] = 2, 0
    metric = SegmentationMetric(TABLE, "coast")
    process(metric, predictions, labels)
    found = metric.evaluate(2)
    assert found["IoU.reef"] == 0
    assert found["mIoU"] == pytest.approx(counted(predictions, labels)["mIoU"])


def test_ignored_pixels_count_nowhere() -> None:
    predictions, labels = images(1, 3)
    changed = [np.where(label == 255, (p + 1) % 4, p) for p, label in zip(predictions, labels, strict=True)]
    results = []
    for version in (predictions, changed):
        metric = SegmentationMetric(TABLE, "coast")
        process(metric, version, labels)
        results.append(metric.evaluate(3))
    assert results[0] == results[1]


def test_every_evaluation_starts_from_zero() -> None:
    metric = SegmentationMetric(TABLE, "coast")
    process(metric, *images(1, 2))
    metric.evaluate(2)
    second = images(2, 2)
    process(metric, *second)
    assert metric.evaluate(2)["mIoU"] == pytest.approx(counted(*second)["mIoU"])


def test_nothing_processed_gives_no_number() -> None:
    found = SegmentationMetric(TABLE, "coast").evaluate(0)
    assert math.isnan(found["mIoU"]) and math.isnan(found["aAcc"]) and math.isnan(found["F1.sand"])


def test_table_without_background_has_no_such_scores() -> None:
    metric = SegmentationMetric(get_table({"name": "coast", "classes": NAMES}), "coast")
    process(metric, *images(0, 1))
    assert not [name for name in metric.evaluate(1) if "background" in name]


def test_logs_a_row_per_class(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("s5"), "propagate", True)
    predictions, labels = images(0, 3)
    metric = SegmentationMetric(TABLE, "coast")
    process(metric, predictions, labels)
    with caplog.at_level(logging.INFO, logger="s5"):
        metric.evaluate(3)
    expected = counted(predictions, labels)
    for name in NAMES:
        row = next(line.split() for line in caplog.text.splitlines() if line.split()[:1] == [name])
        assert [float(cell) for cell in row[1:3]] == [
            pytest.approx(expected[f"{score}.{name}"], abs=0.006) for score in ("IoU", "F1")
        ]


def test_many_classes() -> None:
    """Train ids up to 253 fit the label type; 255 is not a class."""
    table = LabelTable(
        "many", tuple(f"c{i}" for i in range(200)), tuple(range(200)), tuple((i, 0, 0) for i in range(200))
    )
    metric = SegmentationMetric(table, "coast")
    label = np.arange(200, dtype=np.uint8).reshape(10, 20)
    process(metric, [label], [label])
    assert metric.evaluate(1)["mIoU"] == 100
