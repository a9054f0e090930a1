"""RPN and box head that hand float32 to geometry and losses, whatever the matrix work is done in."""

from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmrotate.models.dense_heads import OrientedRPNHead
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from torch import Tensor

# The model opens autocast around its network; these are the places where it is left.


@MODELS.register_module()
class Float32OrientedRPNHead(OrientedRPNHead):
    """mmrotate's oriented RPN with outputs in float32."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
        """Scores and offsets of every level, float32."""
        return tuple([level.float() for level in levels] for levels in super().forward(x))


@MODELS.register_module()
class Float32BBoxHead(Shared2FCBBoxHead):
    """mmdetection's box head of two shared linear layers with outputs in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K + 1) and box deltas (n, 5) of pooled features (n, C, h, w), float32."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


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
        height, width = self.enlarge
        factors = rois.new_tensor([1, 1, 1, width, height, 1])
        return super().forward(tuple(level.float() for level in feats), rois * factors, roi_scale_factor)
