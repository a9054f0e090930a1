"""Coding of oriented proposals and of final boxes, which are not clamped to the image."""

import math
from collections.abc import Sequence

import torch
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from mmrotate.models.task_modules.coders import DeltaXYWHTRBBoxCoder, MidpointOffsetCoder
from mmrotate.registry import TASK_UTILS
from mmrotate.structures.bbox import RotatedBoxes
from torch import Tensor


@TASK_UTILS.register_module()
class AnalyticMidpointCoder(MidpointOffsetCoder):
    """mmrotate's ``MidpointOffsetCoder`` whose ``decode`` stays on the device.

    The original finds the rectangle of every decoded quadrilateral with OpenCV, one by one, on the CPU. But
    the quadrilateral is always a rectangle: its diagonals bisect each other and were made equally long. So
    its sides are the differences of two neighbouring corners.

    With ``da`` and ``db`` at opposite bounds, both diagonals coincide and the rectangle has no area, so the
    proposal would be dropped. It becomes the upright box around it instead. The published code does so for
    one of the two diagonals and leaves a line for the other; here both are treated alike, so that a mirrored
    image gives mirrored boxes.
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
            max_shape: not used; centres are not clamped to the image, as published.
            wh_ratio_clip: bounds the change of the sides to this factor and its inverse.

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
        # From the centre to the corner on the upper and to the one on the right side of the enclosing box.
        top = torch.stack([da * width, -height / 2], -1)
        right = torch.stack([width / 2, db * height], -1)
        top_length, right_length = (v.norm(dim=-1, keepdim=True).clamp(min=1e-6) for v in (top, right))
        half_diagonal = torch.maximum(top_length, right_length)
        top, right = top * (half_diagonal / top_length), right * (half_diagonal / right_length)
        one, other = right - top, right + top  # two neighbouring sides
        along, across = one.norm(dim=-1), other.norm(dim=-1)
        # The longer side tells the angle; the other may have no length, and so no direction.
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


@TASK_UTILS.register_module()
class UnclampedBoxCoder(DeltaXYWHTRBBoxCoder):
    """mmrotate's coder of the final boxes, which leaves centres where they are.

    The original moves them into the image, away from objects that a window cuts.
    """

    def decode(
        self,
        bboxes: RotatedBoxes | Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> RotatedBoxes | Tensor:
        """Decode deltas (N, 5) of boxes (N, 5); ``max_shape`` is not used."""
        return super().decode(bboxes, pred_bboxes, None, wh_ratio_clip)
