"""NMS in the detector: as mmcv's on ordinary boxes, and exact between levels and classes on any."""

import copy

import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from mmrotate.models.dense_heads import OrientedRPNHead
from mmrotate.structures.bbox import RotatedBoxes, rbox2hbox

from s5.detection.network import Settings, build_head
from s5.detection.network.oriented_rcnn import OrientedRCNN
from s5.ops.rotated_nms import rotated_nms, upright_nms

CLASSES = 4
RPN = {"nms_pre": 2000, "max_per_img": 2000, "min_bbox_size": 0, "nms": {"type": "nms", "iou_threshold": 0.8}}
FAR = -9000.0  # pixels


@pytest.fixture(scope="module")
def head() -> OrientedRCNN:
    return build_head([32] * 4, CLASSES, Settings(channels=32, fc_channels=32, score_thr=0.1)).eval()


def rotated(count: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * 100 + shift
    sides = torch.rand(count, 2, generator=generator) * 30 + 5
    return torch.cat([centers, sides, torch.rand(count, 1, generator=generator) * 3 - 1.5], 1)


def beside_zero(boxes: torch.Tensor) -> torch.Tensor:
    """The boxes, and one that makes the largest coordinate, mmcv's offset between classes, nearly 0."""
    side = boxes[:, 2:4].max().item()
    return torch.cat([boxes, torch.tensor([[-side, -side, 4, 3, 0]])])


def proposals(boxes: torch.Tensor, levels: torch.Tensor) -> InstanceData:
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(1))
    return InstanceData(bboxes=RotatedBoxes(boxes), scores=scores, level_ids=levels)


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, labels: torch.Tensor) -> list[int]:
    """One box after the other, in float64."""
    boxes = boxes.double()
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        for j in kept:
            low, high = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
            inner = (high - low).clamp(min=0).prod()
            areas = [(boxes[k, 2:] - boxes[k, :2]).prod() for k in (i, j)]
            if labels[i] == labels[j] and inner / (sum(areas) - inner) > threshold:
                break
        else:
            kept.append(i)
    return kept


# -- the operator


@pytest.mark.parametrize("shift", [0.0, FAR])
def test_upright_nms_keeps_what_the_definition_says(shift: float) -> None:
    boxes = rbox2hbox(rotated(120, shift))
    labels = torch.arange(120) * 7 % 3
    scores = torch.rand(120, generator=torch.Generator().manual_seed(4)).mul(20).round() / 20  # with ties
    found = upright_nms(boxes, scores, 0.3, labels)
    assert found.tolist() == plain_nms(boxes, scores, 0.3, labels)
    assert 3 < len(found) < 100


def test_upright_nms_is_exact_beside_boxes_that_are_far_away() -> None:
    """A box far out would round the others if labels were moved apart by its coordinate."""
    near, far = rbox2hbox(rotated(60)), torch.tensor([[1e9, 1e9, 2e9, 2e9]])
    labels, scores = torch.arange(60) % 4, torch.linspace(1, 0.1, 60)
    alone = upright_nms(near, scores, 0.3, labels)
    everything = [
        torch.cat(pair) for pair in ((near, far), (scores, torch.zeros(1)), (labels, torch.tensor([3])))
    ]
    together = upright_nms(everything[0], everything[1], 0.3, everything[2])
    assert together.tolist() == [*alone.tolist(), 60]
    _, theirs = batched_nms(*everything, {"type": "nms", "iou_threshold": 0.3})
    assert theirs.tolist() != together.tolist(), "an offset would have done as well"


def test_upright_nms_of_nothing() -> None:
    none = torch.zeros(0)
    assert upright_nms(none.view(0, 4), none, 0.5, none.long()).shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("shift", [0.0, FAR])
def test_upright_nms_on_cuda_equals_that_on_the_cpu(shift: float) -> None:
    boxes, labels = rbox2hbox(rotated(3000, shift)), torch.arange(3000) % 5
    scores = torch.rand(3000, generator=torch.Generator().manual_seed(6))
    found = upright_nms(boxes.cuda(), scores.cuda(), 0.8, labels.cuda())
    assert torch.equal(found.cpu(), upright_nms(boxes, scores, 0.8, labels))


# -- in the detector


def test_proposals_are_those_of_mmrotate(head: OrientedRCNN) -> None:
    given = rotated(400), torch.arange(400) % 5
    ours = head.rpn_head._bbox_post_process(proposals(*given), ConfigDict(RPN), img_meta={})
    theirs = OrientedRPNHead._bbox_post_process(
        head.rpn_head, proposals(*given), ConfigDict(RPN), img_meta={}
    )
    assert torch.equal(ours.bboxes.tensor, theirs.bboxes.tensor) and torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.labels, theirs.labels) and "level_ids" not in ours
    assert 100 < len(ours) < 400
    few = head.rpn_head._bbox_post_process(proposals(*given), ConfigDict({**RPN, "max_per_img": 7}))
    assert torch.equal(few.scores, ours.scores[:7])


def test_levels_far_on_the_negative_side_do_not_suppress_each_other(head: OrientedRCNN) -> None:
    boxes = beside_zero(rotated(1, FAR).repeat(5, 1))
    boxes[-1, :2] = -2.5  # of upright boxes, the right side counts
    levels = torch.tensor([0, 1, 2, 3, 4, 0])
    kept = head.rpn_head._bbox_post_process(proposals(boxes, levels), ConfigDict(RPN))
    assert len(kept) == 6
    given = proposals(boxes, levels), ConfigDict(RPN)
    theirs = OrientedRPNHead._bbox_post_process(head.rpn_head, *given, img_meta={})
    assert len(theirs) < 6, "an offset would have done as well"


def test_proposals_without_area_and_images_without_proposals(head: OrientedRCNN) -> None:
    boxes = rotated(4)
    boxes[1, 2], boxes[3, 3] = 0, 0
    kept = head.rpn_head._bbox_post_process(
        proposals(boxes, torch.zeros(4, dtype=torch.long)), ConfigDict(RPN)
    )
    assert len(kept) == 2
    none = head.rpn_head._bbox_post_process(
        proposals(boxes[:0], torch.zeros(0, dtype=torch.long)), ConfigDict(RPN)
    )
    assert len(none) == 0 and none.bboxes.tensor.shape == (0, 5) and none.labels.dtype == torch.int64


def final(
    head: OrientedRCNN, boxes: torch.Tensor, logits: torch.Tensor, kind: type[Shared2FCBBoxHead] | None = None
) -> InstanceData:
    """Detections of boxes (n, 5) that the head does not move, with logits (n, K + 1); as by another class."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    box_head, meta = head.roi_head.bbox_head, {"img_shape": (64, 64), "scale_factor": (0.5, 0.5)}
    cfg = ConfigDict(copy.deepcopy(head.roi_head.test_cfg))
    cfg.nms.type = "nms_rotated"
    predict = (kind or type(box_head))._predict_by_feat_single
    return predict(box_head, rois, logits, torch.zeros(len(boxes), 5), meta, rescale=True, rcnn_test_cfg=cfg)


def test_final_boxes_are_those_of_mmdetection(head: OrientedRCNN) -> None:
    logits = torch.randn(200, CLASSES + 1, generator=torch.Generator().manual_seed(2)) * 2
    ours, theirs = (final(head, rotated(200), logits, kind) for kind in (None, Shared2FCBBoxHead))
    for name in ("bboxes", "scores", "labels"):
        assert torch.equal(ours[name], theirs[name]), name
    above = (logits.softmax(1)[:, :-1] > 0.1).sum()
    assert len(set(ours.labels.tolist())) == CLASSES and 20 < len(ours) < above
    assert torch.equal(ours.scores, ours.scores.sort(descending=True).values)


@pytest.mark.parametrize("shift", [0.0, FAR])
def test_classes_do_not_suppress_each_other(head: OrientedRCNN, shift: float) -> None:
    """One box with four scores is four detections, also where mmcv's offset is nearly nothing."""
    logits = torch.tensor([[1.0, 0.9, 0.8, 0.7, 0.0], [2.0, -9, -9, -9, -9]])
    boxes = beside_zero(rotated(1, shift))
    found = final(head, boxes, logits)
    assert found.labels.tolist() == [0, 0, 1, 2, 3]
    if shift:
        every, labels = boxes[[1, 0, 0, 0, 0]], torch.tensor([0, 0, 1, 2, 3])
        how = {"type": "nms_rotated", "iou_threshold": 0.1}
        _, theirs = batched_nms(every, torch.linspace(1, 0.5, 5), labels, how)
        assert len(theirs) < 5, "an offset would have done as well"


def test_no_proposals_give_no_detections(head: OrientedRCNN) -> None:
    found = final(head, torch.zeros(0, 5), torch.zeros(0, CLASSES + 1))
    assert (len(found), found.bboxes.shape) == (0, (0, 5)) and found.labels.dtype == torch.int64


def test_crowded_far_boxes_are_the_same_as_near_ones() -> None:
    """Rotated NMS with labels does not depend on where the image lies, rounding of the input aside."""
    boxes, labels = rotated(300).round(), torch.arange(300) % 6
    scores = torch.rand(300, generator=torch.Generator().manual_seed(5))
    moved = boxes.clone()
    moved[:, :2] += FAR
    near, far = (rotated_nms(b, scores, 0.1, labels) for b in (boxes, moved))
    assert torch.equal(near, far)
