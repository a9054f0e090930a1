"""Parts of Oriented R-CNN that replace those of mmdetection and mmrotate.

They are label assignment with ignored objects, box coders, heads with float32 outputs, and the RoI extractor.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps, get_box_tensor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from mmrotate.models.dense_heads import OrientedRPNHead
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from mmrotate.models.task_modules.coders import DeltaXYWHTRBBoxCoder, MidpointOffsetCoder
from mmrotate.registry import TASK_UTILS as ROTATED_UTILS
from mmrotate.structures.bbox import RotatedBoxes, rbbox_overlaps, rbox2hbox
from torch import Tensor

from s5.ops.rotated_nms import rotated_nms, upright_nms

AT_ONCE = 1 << 24  # maximum number of box pairs with intermediate results in memory
COVERED = 0.5  # share of a box on an ignored object (IoF) from which the box is ignored


@ROTATED_UTILS.register_module()
class EnclosingOverlaps:
    """IoU of the upright boxes around objects (m, 5) with upright boxes (n, 4), float32 (m, n).

    Like mmrotate's `RBbox2HBboxOverlaps2D`, but computed for a few objects at a time: in a crowded image, the
    corners of all pairs take several times the memory of the result.
    """

    def __call__(self, objects: RotatedBoxes, priors: HorizontalBoxes | Tensor) -> Tensor:
        """Compute the IoU of all pairs."""
        around, boxes = objects.convert_to("hbox").tensor, get_box_tensor(priors)
        overlaps = boxes.new_empty(len(around), len(boxes))
        count = max(1, AT_ONCE // max(1, len(boxes)))
        for part, result in zip(around.split(count), overlaps.split(count), strict=True):
            result.copy_(bbox_overlaps(part, boxes))
        return overlaps


@TASK_UTILS.register_module()
class IgnoringAssigner(MaxIoUAssigner):
    """mmdetection's assigner with support for ignored objects.

    A box without an assigned object is ignored, instead of being background, if its IoU with an ignored
    object is at least `neg_iou_thr` or its IoF (share of the box on the object) is at least one half. The
    original's rule is not applied in images without other objects, and fails for upright boxes.

    Args:
        match_low_quality: Also assign to each object the boxes that overlap it most, if their IoU is at least
            `min_pos_iou`. Same as in the original, but without a device synchronisation per object.
        kwargs: Arguments of `MaxIoUAssigner`.
    """

    def __init__(self, match_low_quality: bool = True, **kwargs: Any) -> None:
        super().__init__(match_low_quality=False, **kwargs)
        self.best_ones = match_low_quality

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,  # noqa: ANN401 - as in the original
    ) -> AssignResult:
        """Assign `priors`, upright (n, 4) or rotated (n, 5), to objects, see the original."""
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
        """Whether each box is to be ignored: bool (n,) for ignored objects (m, 5)."""
        if priors.shape[1] == 4:
            overlaps, ignored = bbox_overlaps, RotatedBoxes(ignored).convert_to("hbox").tensor
        else:
            overlaps = rbbox_overlaps
        unclear = torch.zeros_like(priors[:, 0], dtype=torch.bool)
        for part in ignored.split(max(1, AT_ONCE // len(priors))):
            same = overlaps(priors, part) >= self.neg_iou_thr
            unclear |= (same | (overlaps(priors, part, "iof") >= COVERED)).any(1)
        return unclear


@ROTATED_UTILS.register_module()
class AnalyticMidpointCoder(MidpointOffsetCoder):
    """mmrotate's `MidpointOffsetCoder` with a `decode` that runs on the device.

    The original fits a rectangle to each decoded quadrilateral with OpenCV on the CPU. But the quadrilateral
    already is a rectangle: its diagonals bisect each other and have equal lengths. Its sides are therefore
    the differences of neighbouring corners.

    With `da` and `db` at opposite bounds, both diagonals coincide, and the empty rectangle would be dropped.
    It is replaced by the upright box around it. The published code does this for one of the two diagonals
    only; here both are treated alike, so that decoding is equivariant to flips.
    """

    def decode(
        self,
        bboxes: HorizontalBoxes | Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> RotatedBoxes | Tensor:
        """Decode offsets of horizontal boxes into rotated boxes of the angle version.

        Args:
            bboxes: (N, 4) corners x1, y1, x2, y2 in pixels.
            pred_bboxes: (N, 6) offsets dx, dy, dw, dh, da, db.
            max_shape: Ignored; as published, centres are not clamped to the image.
            wh_ratio_clip: Limits the scaling of the sides to this factor and its inverse.

        Returns:
            (N, 5) x, y, w, h in pixels and the angle in radians.
        """
        x1, y1, x2, y2 = get_box_tensor(bboxes).float().unbind(-1)
        coded = zip(pred_bboxes.float().unbind(-1), self.means, self.stds, strict=True)
        dx, dy, dw, dh, da, db = (delta * std + mean for delta, mean, std in coded)
        bound = abs(math.log(wh_ratio_clip))
        width = (x2 - x1) * dw.clamp(-bound, bound).exp()
        height = (y2 - y1) * dh.clamp(-bound, bound).exp()
        center = torch.stack([(x1 + x2) / 2 + (x2 - x1) * dx, (y1 + y2) / 2 + (y2 - y1) * dy], -1)
        da, db = da.clamp(-0.5, 0.5), db.clamp(-0.5, 0.5)
        collapsed = (da.abs() == 0.5) & (db == -da)
        # Vectors from the centre to the corners on the top and right sides of the enclosing box.
        top = torch.stack([da * width, -height / 2], -1)
        right = torch.stack([width / 2, db * height], -1)
        top_length, right_length = (v.norm(dim=-1, keepdim=True).clamp(min=1e-6) for v in (top, right))
        half_diagonal = torch.maximum(top_length, right_length)
        top, right = top * (half_diagonal / top_length), right * (half_diagonal / right_length)
        one, other = right - top, right + top  # two neighbouring sides
        along, across = one.norm(dim=-1), other.norm(dim=-1)
        # The longer side defines the angle; the other may have zero length and hence no direction.
        angle = torch.where(
            along >= across,
            torch.atan2(one[..., 1], one[..., 0]),
            torch.atan2(other[..., 1], other[..., 0]) + math.pi / 2,
        )
        upright = torch.stack([width, height, torch.zeros_like(angle)], -1)
        sides = torch.where(collapsed[..., None], upright, torch.stack([along, across, angle], -1))
        boxes = RotatedBoxes(torch.cat([center, sides], -1))
        regular = boxes.regularize_boxes(self.angle_version)
        return RotatedBoxes(regular) if self.use_box_type else regular


@ROTATED_UTILS.register_module()
class UnclampedBoxCoder(DeltaXYWHTRBBoxCoder):
    """mmrotate's coder of the final boxes without clamping centres to the image.

    Clamping would move boxes away from objects that a window cuts.
    """

    def decode(
        self,
        bboxes: RotatedBoxes | Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> RotatedBoxes | Tensor:
        """Decode deltas (N, 5) of boxes (N, 5); `max_shape` is ignored."""
        return super().decode(bboxes, pred_bboxes, None, wh_ratio_clip)


NARROW = 32  # pixels; anchors of the first level fit into images with both sides at least this long

# The model runs its network under autocast; the following heads return float32.


@MODELS.register_module()
class Float32OrientedRPNHead(OrientedRPNHead):
    """mmrotate's oriented RPN with float32 outputs; supports images too small for any anchor."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
        """Compute scores and offsets of every level, float32."""
        return tuple([level.float() for level in levels] for levels in super().forward(x))

    def _get_targets_single(
        self,
        flat_anchors: Any,  # noqa: ANN401 - a tensor or a box type
        valid_flags: Tensor,
        gt_instances: InstanceData,
        img_meta: dict[str, Any],
        *args: Any,  # noqa: ANN401 - as in the original
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple:
        """Compute targets as the original, but allow anchors of a narrow image to reach into its padding."""
        if min(img_meta["img_shape"][:2]) < NARROW:
            img_meta = {**img_meta, "img_shape": img_meta["pad_shape"]}
        return super()._get_targets_single(flat_anchors, valid_flags, gt_instances, img_meta, *args, **kwargs)

    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: ConfigDict,
        rescale: bool = False,
        with_nms: bool = True,
        img_meta: dict[str, Any] | None = None,
    ) -> InstanceData:
        """Select the best proposals of an image by NMS of their enclosing upright boxes within each level."""
        if rescale or not with_nms:
            raise NotImplementedError("proposals are always in pixels of the input and after NMS")
        boxes = get_box_tensor(results.bboxes)
        results = results[(boxes[:, 2:4] > cfg.min_bbox_size).all(1)]
        upright = rbox2hbox(get_box_tensor(results.bboxes))
        kept = upright_nms(upright, results.scores, cfg.nms.iou_threshold, results.level_ids)
        results = results[kept[: cfg.max_per_img]]
        results.labels = torch.zeros_like(results.level_ids)  # the only class of the RPN
        del results.level_ids
        return results


@MODELS.register_module()
class Float32BBoxHead(Shared2FCBBoxHead):
    """mmdetection's box head of two shared linear layers with float32 outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores (n, K + 1) and box deltas (n, 5) from pooled features (n, C, h, w), float32."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()

    def _predict_by_feat_single(
        self,
        roi: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict[str, Any],
        rescale: bool = False,
        rcnn_test_cfg: ConfigDict | None = None,
    ) -> InstanceData:
        """Compute detections of an image with NMS per class; all boxes and scores without `rcnn_test_cfg`."""
        results = super()._predict_by_feat_single(roi, cls_score, bbox_pred, img_meta, rescale, None)
        if rcnn_test_cfg is None:
            return results
        scores = results.scores[:, :-1]  # background is last
        rows, labels = (scores > rcnn_test_cfg.score_thr).nonzero(as_tuple=True)
        boxes, scores = results.bboxes[rows], scores[rows, labels]
        kept = rotated_nms(boxes, scores, rcnn_test_cfg.nms.iou_threshold, labels)
        kept = kept[: rcnn_test_cfg.max_per_img]
        return InstanceData(bboxes=boxes[kept], scores=scores[kept], labels=labels[kept])

    def loss(self, cls_score: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Compute losses as the original; without RoIs, a zero loss that depends on every parameter."""
        losses = super().loss(cls_score, *args, **kwargs)
        losses.setdefault("loss_cls", cls_score.sum())
        return losses


@MODELS.register_module()
class EnlargingRoIExtractor(RotatedSingleRoIExtractor):
    """Enlarges rotated RoIs before pooling, so that the head sees some context.

    As in the published detector, RoIs are enlarged before they are assigned to levels; mmrotate has no such
    option.

    Args:
        enlarge: Factors of height and width; (1, 1) disables enlarging.
        kwargs: Arguments of `RotatedSingleRoIExtractor`.
    """

    def __init__(self, enlarge: tuple[float, float], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.enlarge = enlarge

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Pool features (n, C, h, w), float32, of RoIs (n, 6): image index, x, y, w, h in pixels, angle."""
        image, x, y, width, height, angle = rois.unbind(1)
        larger = torch.stack([image, x, y, width * self.enlarge[1], height * self.enlarge[0], angle], 1)
        return super().forward(tuple(level.float() for level in feats), larger, roi_scale_factor)
