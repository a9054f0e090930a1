"""Operators with the signatures of mmcv's compiled extension.

Like the extension, some write their result into a tensor allocated by the caller.
"""

from typing import Any

import torch
import torchvision
from torch import Tensor

from s5.compat.mmcv_ext import HOW_TO_COMPILE
from s5.ops.rotated_iou import MODES, rotated_iou
from s5.ops.rotated_nms import kept_in_order
from s5.ops.rotated_roi_align import Sampling, pool, unpool


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, out: Tensor, *, mode_flag: int, aligned: bool) -> None:
    """Write the overlap of rotated boxes into `out`; columns after the fifth (a score) are ignored."""
    overlap = rotated_iou(boxes1[:, :5], boxes2[:, :5], MODES[mode_flag], aligned)
    out.copy_(overlap.view_as(out))


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    order: Tensor,
    boxes_in_order: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Indices kept by rotated NMS; labels are ignored as in the extension, whose callers offset boxes."""
    return order[kept_in_order(boxes_in_order[:, :5], iou_threshold)]


def roi_align_rotated_forward(features: Tensor, rois: Tensor, out: Tensor, **settings: Any) -> None:
    """Write pooled rotated regions into `out`; for the settings see `_rotated`."""
    out.copy_(pool(features, rois, _rotated(**settings)))


def roi_align_rotated_backward(grad: Tensor, rois: Tensor, out: Tensor, **settings: Any) -> None:
    """Write the gradient of the features into `out`."""
    out.copy_(unpool(grad, rois, out.shape, _rotated(**settings)))


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices kept by NMS; with offset 1 a box includes its last pixel."""
    boxes = _full(boxes)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    features: Tensor, rois: Tensor, out: Tensor, argmax_y: Tensor, argmax_x: Tensor, **settings: Any
) -> None:
    """Write pooled upright regions into `out`; for the settings see `_upright`."""
    scale, size, *how = _upright(**settings)
    features = _full(features)
    out.copy_(torchvision.ops.roi_align(features, rois.to(features.dtype), size, scale, *how))


def roi_align_backward(
    grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, out: Tensor, **settings: Any
) -> None:
    """Write the gradient of the features into `out`."""
    scale, size, *how = _upright(**settings)
    grad = _full(grad)
    rois = rois.to(grad.dtype)
    out.copy_(torch.ops.torchvision._roi_align_backward(grad, rois, scale, *size, *out.shape, *how))


def _rotated(
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Sampling:
    return Sampling((pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned, clockwise)


def _upright(
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> tuple[float, tuple[int, int], int, bool]:
    """Settings in torchvision's order.

    Raises:
        NotImplementedError: `pool_mode` is `max`, which torchvision does not have.
    """
    if pool_mode != 1:
        raise NotImplementedError(
            "mmcv operator 'roi_align' with pool_mode='max' needs mmcv's compiled extension. "
            f"Build it with `{HOW_TO_COMPILE}`, or use pool_mode='avg'."
        )
    return spatial_scale, (aligned_height, aligned_width), sampling_ratio, aligned


def _full(tensor: Tensor) -> Tensor:
    """Half precision as float32: torchvision's operators do not support it on all devices."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
