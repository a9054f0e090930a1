"""Non-maximum suppression of upright boxes, exact between labels."""

import torch
import torchvision
from torch import Tensor


@torch.no_grad()
def upright_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> Tensor:
    """Choose the boxes that no better box of their label overlaps.

    ``batched_nms`` of mmcv and torchvision moves the labels apart by an offset of the largest coordinate, so
    that boxes far on the negative side still meet those of other labels, and boxes far out round the others.
    Here the labels are processed one after the other, on the boxes as they are. A CUDA device is waited for
    once, and once for every label.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        threshold: IoU above which the box of lower score goes.
        labels: (N,) integers; boxes of different labels do not suppress each other.

    Returns:
        (K,) int64 indices of the kept boxes by falling score, of equal scores the first one first.
    """
    if not len(boxes):
        return labels.new_zeros(0, dtype=torch.int64)
    order = labels.argsort(stable=True)
    counts = labels[order].unique_consecutive(return_counts=True)[1].tolist()
    kept = [part[torchvision.ops.nms(boxes[part], scores[part], threshold)] for part in order.split(counts)]
    index = torch.cat(kept).sort().values
    return index[scores[index].argsort(descending=True, stable=True)]
