"""mmcv's Python operators on top of ours, called as mmdetection and mmrotate call them."""

import ast
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import s5  # noqa: F401 - before mmcv, which looks for its extension
from s5.compat.mmcv_ext import in_use
from s5.ops.rotated_iou import rotated_iou
from s5.ops.rotated_nms import rotated_nms
from s5.ops.rotated_roi_align import Sampling, rotated_roi_align
from tests.helpers.rotated_boxes import random_boxes
from tests.helpers.s4p_runs import environment

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(in_use() == "compiled", reason="tests the stand-in")

SCRIPT = """
import multiprocessing
import s5

def work():
    import torch
    from mmcv.ops import box_iou_rotated, nms_rotated
    boxes = torch.tensor([[0.0, 0, 4, 4, 0], [0.5, 0, 4, 4, 0], [9, 9, 4, 4, 0]])
    iou = box_iou_rotated(boxes, boxes)
    return iou[0, 1].item(), nms_rotated(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)[1].tolist()

if __name__ == "__main__":
    print(multiprocessing.get_context("spawn").Pool(1).apply(work))
"""


def scores_of(boxes: Tensor) -> Tensor:
    return torch.rand(len(boxes), generator=torch.Generator().manual_seed(3))


def upright_boxes(count: int) -> Tensor:
    boxes = random_boxes(count)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]), dim=1)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("clockwise", [True, False])
def test_box_iou_rotated(mode: str, clockwise: bool) -> None:
    boxes1, boxes2 = random_boxes(30), random_boxes(40, seed=1)
    result = ops.box_iou_rotated(boxes1, boxes2, mode, clockwise=clockwise)
    turn = 1 if clockwise else torch.tensor([1, 1, 1, 1, -1])
    torch.testing.assert_close(result, rotated_iou(boxes1 * turn, boxes2 * turn, mode), rtol=0, atol=0)
    aligned = ops.box_iou_rotated(boxes1, boxes2[:30], mode, aligned=True, clockwise=clockwise)
    torch.testing.assert_close(aligned, result.diagonal())


def test_box_iou_rotated_of_boxes_with_scores() -> None:
    """The mAP of mmrotate passes detections with their score as sixth column."""
    boxes1, boxes2 = random_boxes(8), random_boxes(9, seed=1)
    scored = torch.cat((boxes1, torch.rand(8, 1)), dim=1)
    expected = rotated_iou(boxes1, boxes2)
    torch.testing.assert_close(ops.box_iou_rotated(scored, boxes2), expected, rtol=0, atol=0)


def test_box_iou_rotated_of_no_boxes() -> None:
    assert ops.box_iou_rotated(torch.zeros(0, 5), random_boxes(3)).shape == (0, 3)
    assert ops.box_iou_rotated(torch.zeros(0, 5), torch.zeros(0, 5), aligned=True).shape == (0,)


@pytest.mark.parametrize("clockwise", [True, False])
def test_nms_rotated(clockwise: bool) -> None:
    boxes = random_boxes(200)
    scores = scores_of(boxes)
    detections, kept = ops.nms_rotated(boxes, scores, 0.1, clockwise=clockwise)
    turn = 1 if clockwise else torch.tensor([1, 1, 1, 1, -1])
    assert torch.equal(kept, rotated_nms(boxes * turn, scores, 0.1))
    assert torch.equal(detections, torch.cat((boxes, scores[:, None]), dim=1)[kept])


def test_nms_rotated_with_labels_ignores_them_as_the_extension_does(shared) -> None:
    golden = np.load(shared / "reference" / "golden" / "nms_rotated_random.npz")
    boxes, scores, labels = (torch.from_numpy(golden[name]) for name in ("boxes", "scores", "labels"))
    for threshold in (0.05, 0.5, 0.9):
        for classes, name in ((None, "keep"), (labels, "keep_labels")):
            _, kept = ops.nms_rotated(boxes, scores, threshold, classes)
            np.testing.assert_array_equal(kept.numpy(), golden[f"{name}_{threshold}"])


def test_batched_nms_of_rotated_boxes_keeps_classes_apart() -> None:
    boxes = random_boxes(300)
    scores, labels = scores_of(boxes), torch.arange(300) % 4
    _, kept = ops.batched_nms(boxes, scores, labels, {"type": "nms_rotated", "iou_threshold": 0.1})
    assert torch.equal(kept, rotated_nms(boxes, scores, 0.1, labels))
    assert len(kept) > len(rotated_nms(boxes, scores, 0.1))


@pytest.mark.parametrize("settings", [{}, {"aligned": False}, {"clockwise": True}, {"sampling_ratio": 2}])
def test_roi_align_rotated(settings: dict) -> None:
    features = torch.randn(2, 3, 16, 16, requires_grad=True)
    rois = torch.cat((torch.arange(10)[:, None] % 2, random_boxes(10, 64)), dim=1)
    grad = torch.randn(10, 3, 4, 5)
    layer = ops.RoIAlignRotated((4, 5), spatial_scale=0.25, **settings)
    output = layer(features, rois)
    output.backward(grad)
    exact = features.detach().clone().requires_grad_()
    sampling = Sampling((4, 5), 0.25, layer.sampling_ratio, aligned=layer.aligned, clockwise=layer.clockwise)
    expected = rotated_roi_align(exact, rois, sampling)
    expected.backward(grad)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(features.grad, exact.grad, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"aligned": False}, {"sampling_ratio": 2}])
def test_roi_align(settings: dict, dtype: torch.dtype) -> None:
    features = torch.randn(2, 3, 16, 16).to(dtype).requires_grad_()
    rois = torch.cat((torch.arange(10)[:, None] % 2, upright_boxes(10)), dim=1).to(dtype)
    grad = torch.randn(10, 3, 4, 5).to(dtype)
    layer = ops.RoIAlign((4, 5), 0.25, **settings)
    output = layer(features, rois)
    output.backward(grad)
    exact = features.detach().float().requires_grad_()
    expected = torchvision.ops.roi_align(
        exact, rois.float(), (4, 5), 0.25, layer.sampling_ratio, layer.aligned
    )
    expected.backward(grad.float())
    torch.testing.assert_close(output, expected.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(features.grad, exact.grad.to(dtype), rtol=0, atol=0)


def test_roi_align_by_the_maximum_is_an_error_with_the_way_out() -> None:
    with pytest.raises(NotImplementedError, match="'roi_align' with pool_mode='max'.*pool_mode='avg'"):
        ops.RoIAlign(2, 0.25, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset: int) -> None:
    boxes = upright_boxes(200)
    scores = scores_of(boxes)
    grown = boxes + torch.tensor([0, 0, offset, offset])
    expected = torchvision.ops.nms(grown, scores, 0.4)
    detections, kept = ops.nms(boxes, scores, 0.4, offset=offset)
    assert torch.equal(kept, expected)
    assert torch.equal(detections, torch.cat((boxes, scores[:, None]), dim=1)[kept])
    assert ops.nms(boxes[:0], scores[:0], 0.4)[1].shape == (0,)


def test_the_offset_of_nms_counts() -> None:
    """Two boxes of 2 x 2 pixels side by side: with their last pixel they share a third."""
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]]), torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]  # 1 / 3
    assert ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]  # 2 / 4


def test_batched_nms() -> None:
    boxes = upright_boxes(300)
    scores, labels = scores_of(boxes), torch.arange(300) % 4
    _, kept = ops.batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.3})
    assert torch.equal(kept, torchvision.ops.batched_nms(boxes, scores, labels, 0.3))


@pytest.mark.slow
def test_in_a_spawned_worker(tmp_path) -> None:
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    variables = environment() | {"S5_MMCV_EXT": "pure"}
    result = subprocess.run(
        [sys.executable, script], env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    iou, kept = ast.literal_eval(result.stdout)
    assert iou == pytest.approx(3.5 / 4.5)
    assert kept == [1, 2]
