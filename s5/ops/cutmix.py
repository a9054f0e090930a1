"""CutMix within a batch (Yun et al., ICCV 2019), for images, labels and confidence maps."""

import torch
from torch import Tensor


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Rasterise boxes to masks.

    Args:
        boxes: (B, 4) integer x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
        height: Height of the masks in pixels.
        width: Width of the masks in pixels.

    Returns:
        (B, H, W) bool, true inside the box; an empty box gives an empty mask.
    """
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)  # each (B, 1)
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    inside_x = (columns >= x0) & (columns < x1)  # (B, W)
    inside_y = (rows >= y0) & (rows < y1)  # (B, H)
    return inside_y[:, :, None] & inside_x[:, None, :]


def cutmix(x: Tensor, boxes: Tensor, partner: Tensor) -> Tensor:
    """Paste into every element the box of its partner.

    Args:
        x: (B, ..., H, W): images (B, 3, H, W), labels or confidences (B, H, W), any dtype.
        boxes: (B, 4) integer x0, y0, x1, y1 in pixels, on the device of `x`; empty = nothing pasted.
        partner: (B,) int64 index into the batch, on the device of `x`.

    Returns:
        Tensor like `x` with `x[partner]` inside the box and `x` outside.
    """
    height, width = x.shape[-2:]
    mask = box_mask(boxes, height, width)
    mask = mask.view(len(x), *[1] * (x.ndim - 3), height, width)
    return torch.where(mask, x[partner], x)
