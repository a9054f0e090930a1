"""RPN and box head that hand float32 to geometry and losses, whatever the matrix work is done in."""

from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from mmrotate.models.dense_heads import OrientedRPNHead
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from torch import Tensor

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


@MODELS.register_module()
class Float32BBoxHead(Shared2FCBBoxHead):
    """mmdetection's box head of two shared linear layers with outputs in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K + 1) and box deltas (n, 5) of pooled features (n, C, h, w), float32."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()

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
