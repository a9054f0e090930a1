"""Which boxes of the network are to find which object, and which are to find nothing."""

from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps, get_box_tensor
from mmengine.structures import InstanceData
from mmrotate.registry import TASK_UTILS as ROTATED_UTILS
from mmrotate.structures.bbox import RotatedBoxes, rbbox_overlaps
from torch import Tensor

AT_ONCE = 1 << 24  # pairs of boxes, of which the intermediate results are in memory
COVERED = 0.5  # share of a box on an ignored object, from which on it says nothing


@ROTATED_UTILS.register_module()
class EnclosingOverlaps:
    """IoU of the upright boxes around objects (m, 5) with upright boxes (n, 4), float32 (m, n).

    As mmrotate's ``RBbox2HBboxOverlaps2D``, but for a few objects at a time: of a crowded image, the corners
    of all pairs take several times the memory of the result.
    """

    def __call__(self, objects: RotatedBoxes, priors: HorizontalBoxes | Tensor) -> Tensor:
        """The IoU of all pairs."""
        around, boxes = objects.convert_to("hbox").tensor, get_box_tensor(priors)
        overlaps = boxes.new_empty(len(around), len(boxes))
        count = max(1, AT_ONCE // max(1, len(boxes)))
        for part, result in zip(around.split(count), overlaps.split(count), strict=True):
            result.copy_(bbox_overlaps(part, boxes))
        return overlaps


@TASK_UTILS.register_module()
class IgnoringAssigner(MaxIoUAssigner):
    """mmdetection's assigner, for which what lies on ignored objects is not background, either.

    A box that no object is assigned to is left out of the losses if it would not be background of an ignored
    object, were that an ordinary one (by ``neg_iou_thr``), or if at least half of it lies on one. The rule of
    the original passes over images without other objects, and fails where the boxes are upright.

    Args:
        match_low_quality: give each object the boxes that overlap it most, if they do by ``min_pos_iou``. As
            in the original, which waits for the GPU once for every object.
        kwargs: as for ``MaxIoUAssigner``.
    """

    def __init__(self, match_low_quality: bool = True, **kwargs: Any) -> None:
        super().__init__(match_low_quality=False, **kwargs)
        self.best_ones = match_low_quality

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,  # noqa: ANN401 - as of the original
    ) -> AssignResult:
        """Assign ``priors``, upright (n, 4) or rotated (n, 5), to objects, see the original."""
        result = super().assign(pred_instances, gt_instances, None, **kwargs)
        if gt_instances_ignore is not None and len(gt_instances_ignore) and len(pred_instances):
            priors = get_box_tensor(pred_instances.priors)
            unclear = self._on(priors, get_box_tensor(gt_instances_ignore.bboxes))
            result.gt_inds = torch.where((result.gt_inds == 0) & unclear, -1, result.gt_inds)
        return result

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """Assign by the overlaps (m, n) of m objects with n boxes, see the original."""
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        if self.best_ones and overlaps.numel():
            best = overlaps.amax(1, keepdim=True)
            objects, boxes = ((overlaps == best) & (best >= self.min_pos_iou)).nonzero(as_tuple=True)
            result.gt_inds.scatter_reduce_(0, boxes, objects + 1, "amax", include_self=False)
            labels = gt_labels[(result.gt_inds - 1).clamp(min=0)]
            result.labels = torch.where(result.gt_inds > 0, labels, -1)
        return result

    def _on(self, priors: Tensor, ignored: Tensor) -> Tensor:
        """Whether each box (n,) lies on one of the ignored (m, 5)."""
        if priors.shape[1] == 4:
            overlaps, ignored = bbox_overlaps, RotatedBoxes(ignored).convert_to("hbox").tensor
        else:
            overlaps = rbbox_overlaps
        unclear = torch.zeros_like(priors[:, 0], dtype=torch.bool)
        for part in ignored.split(max(1, AT_ONCE // len(priors))):
            same = overlaps(priors, part) >= self.neg_iou_thr
            unclear |= (same | (overlaps(priors, part, "iof") >= COVERED)).any(1)
        return unclear
