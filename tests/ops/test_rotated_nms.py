"""Rotated NMS against the plain greedy loop, the golden file, and on many boxes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from s5.ops import rotated_nms as module
from s5.ops.rotated_iou import rotated_iou
from s5.ops.rotated_nms import kept_by_rounds, rotated_nms
from tests.helpers.rotated_boxes import extreme_boxes, random_boxes

THRESHOLDS = [0.0, 0.1, 0.5, 0.9, 1.0]


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None) -> Tensor:
    iou = rotated_iou(boxes.double(), boxes.double())
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels is None or labels[j] == labels[i]]
        if not (iou[rivals, i] > threshold).any():
            kept.append(i)
    return torch.tensor(kept)


def crowd(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap a lot, with many equal scores, in four classes."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 60, (count,), generator=generator) / 60
    return (
        random_boxes(count, 250, (20, 60), seed),
        scores,
        torch.randint(0, 4, (count,), generator=generator),
    )


@pytest.fixture(params=["sparse", "dense"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both the way of the CPU and, on the CPU, that of CUDA."""
    if request.param == "dense":
        monkeypatch.setattr(module, "_Sparse", module._Dense)
    return request.param


@pytest.mark.parametrize("block", [16, 150, 4096])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_equals_the_plain_loop(
    way: str, threshold: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "CUDA_CELLS", 500)
    boxes, scores, labels = crowd(200)
    for classes in (None, labels):
        expected = plain_nms(boxes, scores, threshold, classes)
        assert torch.equal(rotated_nms(boxes, scores, threshold, classes), expected)
    assert 10 < len(expected) <= 200


def test_only_a_greater_iou_suppresses(way: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4, 0], [2, 0, 4, 4, 0], [0, 0, 4, 4, math.pi / 2]])
    iou = 1 / 3  # of the first two
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert rotated_nms(boxes[:2], scores[:2], iou + 1e-9).tolist() == [0, 1]
    assert rotated_nms(boxes[:2], scores[:2], iou - 1e-9).tolist() == [0]
    assert rotated_nms(boxes.double()[[0, 0]], scores[:2], 1.0).tolist() == [0, 1]
    assert rotated_nms(boxes, scores, 0.999).tolist() == [0, 1]


def test_a_suppressed_box_suppresses_nothing(way: str) -> None:
    """A row of boxes, each over half of the next: every other one stays."""
    count = 70  # a longer chain than the rounds between two checks
    boxes = torch.zeros(count, 5) + torch.tensor([0, 0, 30, 10, math.pi / 2])
    boxes[:, 1] = torch.arange(count) * 10
    kept = rotated_nms(boxes, torch.linspace(1, 0, count), 0.4)
    assert kept.tolist() == list(range(0, count, 2))


def test_first_box_wins_among_equal_scores(way: str) -> None:
    boxes = random_boxes(1).expand(5, 5)
    assert rotated_nms(boxes, torch.ones(5), 0.5).tolist() == [0]


def test_no_boxes(way: str) -> None:
    for labels in (None, torch.zeros(0, dtype=torch.long)):
        kept = rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.5, labels)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


def test_boxes_without_area_or_not_finite_are_kept_and_harm_no_others(way: str) -> None:
    boxes, scores, labels = crowd(60)
    odd = torch.tensor(
        [[float("nan")] * 5, [0, float("inf"), 5, 5, 0], [50, 50, 0, 30, 0], [3e38, -3e38, 3e38, 10, 1]]
    )
    expected = plain_nms(boxes, scores, 0.3, labels)
    classes = torch.cat((labels, torch.tensor([0, 1, 2, 10**12])))
    kept = rotated_nms(torch.cat((boxes, odd)), torch.cat((scores, torch.ones(4))), 0.3, classes)
    assert set(kept[kept >= 60].tolist()) == {60, 61, 62, 63}
    assert torch.equal(kept[kept < 60], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_finite_boxes(way: str, dtype: torch.dtype) -> None:
    boxes, (_, scores, labels) = extreme_boxes(700, dtype), crowd(700)
    for classes in (None, labels):
        kept = rotated_nms(boxes, scores, 0.3, classes)
        assert torch.equal(kept, plain_nms(boxes, scores, 0.3, classes))
        assert len(kept) < 700


def test_rounds_equal_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    for density in (0.005, 0.05, 0.5):
        conflicts = (torch.rand(150, 150, generator=generator) < density).triu(diagonal=1)
        expected = module._greedy(150, *(index.numpy() for index in conflicts.nonzero(as_tuple=True)))
        np.testing.assert_array_equal(kept_by_rounds(conflicts).numpy(), expected.nonzero()[0])


def test_golden(shared) -> None:
    """The file is of mmcv's CPU operator, which suppresses at equality: at threshold 0, everything."""
    golden = np.load(shared / "reference" / "golden" / "nms_rotated_random.npz")
    boxes, scores = torch.from_numpy(golden["boxes"]), torch.from_numpy(golden["scores"])
    other_way = boxes * torch.tensor([1, 1, 1, 1, -1])
    for threshold in (0.05, 0.1, 0.3, 0.5, 0.8, 0.9, 1.0):
        np.testing.assert_array_equal(rotated_nms(boxes, scores, threshold), golden[f"keep_{threshold}"])
        kept = rotated_nms(other_way, scores, threshold)
        np.testing.assert_array_equal(kept, golden[f"keep_ccw_{threshold}"])


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    boxes, scores, labels = crowd(6000)
    for classes in (None, labels):
        kept = rotated_nms(boxes.cuda(), scores.cuda(), 0.3, None if classes is None else classes.cuda())
        assert torch.equal(kept.cpu(), rotated_nms(boxes, scores, 0.3, classes))
