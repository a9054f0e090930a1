"""RPN and box head that hand float32 to geometry and losses, whatever the matrix work is done in.

Both suppress overlapping boxes by S5's own operators, level by level and class by class. Those of mmcv move
levels and classes apart by the largest coordinate alone, which boxes far on the negative side undo.
"""

from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from mmrotate.models.dense_heads import OrientedRPNHead
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from mmrotate.structures.bbox import rbox2hbox
from torch import Tensor

from s5.ops.rotated_nms import rotated_nms
from s5.ops.upright_nms import upright_nms

NARROW = 32  # pixels; images at least as wide and high have room for anchors of the first level

# The model opens autocast around its network; these are the places where it is left.


@MODELS.register_module()
class Float32OrientedRPNHead(OrientedRPNHead):
    """mmrotate's oriented RPN with outputs in float32, also for images with no room for an anchor."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
        """Scores and offsets of every level, float32."""
        return tuple([level.float() for level in levels] for levels in super().forward(x))

    def _get_targets_single(
        self,
        flat_anchors: Any,  # noqa: ANN401 - a tensor or a type of boxes
        valid_flags: Tensor,
        gt_instances: InstanceData,
        img_meta: dict[str, Any],
        *args: Any,  # noqa: ANN401 - as of the original
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple:
        """As of the original; anchors of a narrow image may reach into its padding."""
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
        """The best proposals of an image: NMS of the upright boxes around them within each level."""
        if rescale or not with_nms:
            raise NotImplementedError("proposals are in pixels of the input, after NMS")
        boxes = get_box_tensor(results.bboxes)
        results = results[(boxes[:, 2:4] > cfg.min_bbox_size).all(1)]
        upright = rbox2hbox(get_box_tensor(results.bboxes))
        kept = upright_nms(upright, results.scores, cfg.nms.iou_threshold, results.level_ids)
        results = results[kept[: cfg.max_per_img]]
        results.labels = torch.zeros_like(results.level_ids)  # the one class of the RPN
        del results.level_ids
        return results


@MODELS.register_module()
class Float32BBoxHead(Shared2FCBBoxHead):
    """mmdetection's box head of two shared linear layers with outputs in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K + 1) and box deltas (n, 5) of pooled features (n, C, h, w), float32."""
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
        """Detections of an image: NMS within each class; without ``rcnn_test_cfg`` all boxes and scores."""
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
        """As of the original; without any RoI, as where all is ignored, 0 that every weight is part of."""
        losses = super().loss(cls_score, *args, **kwargs)
        losses.setdefault("loss_cls", cls_score.sum())
        return losses


@MODELS.register_module()
class EnlargingRoIExtractor(RotatedSingleRoIExtractor):
    """Pools rotated RoIs after enlarging them, so that the head sees some of the surroundings.

    The published detector enlarges before it assigns RoIs to levels; mmrotate has no such option.

    Args:
        enlarge: factors of height and width; (1, 1) leaves the RoIs as they are.
        kwargs: as for ``RotatedSingleRoIExtractor``.
    """

    def __init__(self, enlarge: tuple[float, float] = (1.4, 1.2), **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.enlarge = enlarge

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Features (n, C, h, w), float32, of RoIs (n, 6): image index, x, y, w, h in pixels, angle."""
        image, x, y, width, height, angle = rois.unbind(1)
        larger = torch.stack([image, x, y, width * self.enlarge[1], height * self.enlarge[0], angle], 1)
        return super().forward(tuple(level.float() for level in feats), larger, roi_scale_factor)
