"""Non-maximum suppression of rotated boxes.

Greedy and exact: by falling score, a box is kept unless its IoU with a kept box of its class is **greater**
than the threshold. (torchvision's NMS and mmcv's on CUDA compare the same way; mmcv's on a CPU suppresses at
equality too. The two differ only where an IoU equals the threshold: at 0, where ours suppresses boxes that
overlap at all, and at 1.) Among equal scores the box that comes first wins, so the result is deterministic.

Boxes are taken in blocks by falling score. What a block keeps suppresses among all later boxes, before the
next block is looked at: memory is bounded whatever the number of boxes, and most boxes of a dense scene
never meet each other.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torchvision
from torch import Tensor

from s5.ops.boxes import Pairs, columns_of, enclosing_boxes
from s5.ops.rotated_iou import overlaps_of_pairs, rotated_iou

BLOCK = 4096
CUDA_CELLS = 1 << 26  # of the table of conflicts between a block and later boxes
ROUNDS = 16


def rotated_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Choose the boxes that no better box of their class overlaps.

    On a CPU only pairs whose enclosing boxes overlap are computed. On CUDA all are. There up to 4096 boxes
    synchronise with the device once, for the number of boxes kept (and once more for every 16 boxes in a row
    each of which decides about the next). More are taken in blocks of 4096, and each block synchronises once
    more, for the number of boxes left.

    Args:
        boxes: (N, 5) as x, y, w, h, theta in radians.
        scores: (N,).
        threshold: IoU in [0, 1] above which the box of lower score goes.
        labels: (N,) integer classes; boxes of different classes do not suppress each other. None: one class.

    Returns:
        (K,) int64 indices of the kept boxes by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[kept_in_order(boxes[order], threshold, None if labels is None else labels[order])]


@torch.no_grad()
def kept_in_order(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Like `rotated_nms`, of boxes that are sorted by falling score.

    Args:
        boxes: (N, 5).
        threshold: IoU in [0, 1].
        labels: (N,) classes or None.

    Returns:
        (K,) int64 indices of the kept boxes, rising.
    """
    conflicts = _Dense(boxes, threshold, labels) if boxes.is_cuda else _Sparse(boxes, threshold, labels)
    rest = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(rest):
        block, rest = rest[:BLOCK], rest[BLOCK:]
        kept.append(block.index_select(0, conflicts.kept_among(block)))
        if len(rest):
            rest = rest[~conflicts.suppressed(kept[-1], rest)]
    return torch.cat(kept) if kept else rest


class _Sparse:
    """Conflicts between boxes, found through pairs of enclosing boxes."""

    def __init__(self, boxes: Tensor, threshold: float, labels: Tensor | None) -> None:
        self.columns, self.threshold = columns_of(boxes), threshold
        self.upright = _apart_by_class(enclosing_boxes(self.columns), labels)

    def kept_among(self, block: Tensor) -> Tensor:
        none = block[:0]
        first, second = map(torch.cat, zip((none, none), *self._pairs(block, block), strict=True))
        ahead = first < second
        kept = _greedy(len(block), first[ahead].numpy(), second[ahead].numpy())
        return torch.from_numpy(kept.nonzero()[0])

    def suppressed(self, kept: Tensor, rest: Tensor) -> Tensor:
        result = torch.zeros(len(rest), dtype=torch.bool)
        for _, j in self._pairs(kept, rest):
            result.scatter_(0, j, True)
        return result

    def _pairs(self, first: Tensor, second: Tensor) -> Iterator[Pairs]:
        columns1, columns2 = (self.columns.index_select(1, index) for index in (first, second))
        upright1, upright2 = (self.upright.index_select(0, index) for index in (first, second))
        for i, j, iou in overlaps_of_pairs(columns1, columns2, upright1, upright2):
            above = (iou > self.threshold).nonzero().squeeze(1)
            yield i.index_select(0, above), j.index_select(0, above)


class _Dense:
    """Conflicts between boxes as tables, without waiting for the device but for the result."""

    def __init__(self, boxes: Tensor, threshold: float, labels: Tensor | None) -> None:
        self.boxes, self.threshold, self.labels = boxes.double(), threshold, labels

    def kept_among(self, block: Tensor) -> Tensor:
        return kept_by_rounds(self._table(block, block).triu(diagonal=1))

    def suppressed(self, kept: Tensor, rest: Tensor) -> Tensor:
        parts = rest.split(max(1, CUDA_CELLS // max(1, len(kept))))
        return torch.cat([self._table(kept, part).any(dim=0) for part in parts])

    def _table(self, first: Tensor, second: Tensor) -> Tensor:
        table = rotated_iou(self.boxes[first], self.boxes[second]) > self.threshold
        if self.labels is not None:
            table &= self.labels[first, None] == self.labels[second]
        return table


def kept_by_rounds(conflicts: Tensor) -> Tensor:
    """Solve greedy suppression for all boxes at once.

    Whether a box is kept depends on better boxes only. A round recomputes all boxes from a guess: from any
    first guess, it makes the first box right, the next round those that depend on it, and so on. Rounds that
    change nothing have reached the greedy result, after as many as the longest chain of boxes that decide
    about each other.

    Args:
        conflicts: (N, N) bool, true where box i, the better one, would suppress box j; upper triangular, the
            diagonal false.

    Returns:
        (K,) int64 indices of the kept boxes, rising.
    """
    kept = torch.ones(len(conflicts), dtype=torch.bool, device=conflicts.device)
    while True:
        for _ in range(ROUNDS):
            before = kept
            kept = ~(conflicts & before[:, None]).any(dim=0)
        both = torch.stack((before, kept)).cpu()  # synchronises with the device
        if torch.equal(*both):
            return both[1].nonzero().squeeze(1).to(conflicts.device, non_blocking=True)


def _greedy(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Suppress one box after the other; pairs (first, second) in conflict have the better box first."""
    order = first.argsort(kind="stable")
    second = second[order]
    better, starts = np.unique(first[order], return_index=True)
    ends = np.append(starts[1:], len(second))
    kept = np.ones(count, dtype=bool)
    for box, start, end in zip(better.tolist(), starts.tolist(), ends.tolist(), strict=False):
        if kept[box]:
            kept[second[start:end]] = False
    return kept


def _apart_by_class(upright: Tensor, labels: Tensor | None) -> Tensor:
    """Moves each class of enclosing boxes to a place of their own on the x axis, where they meet no others.

    Only the order of coordinates decides what overlaps. They are replaced by their ranks, so that one box far
    out does not cost the others their precision.
    """
    if labels is None:
        return upright
    x = upright[:, ::2]
    ranks = x.unique(return_inverse=True)[1]
    place = labels.unique(return_inverse=True)[1][:, None] * x.numel()
    result = upright.clone()
    result[:, ::2] = torch.where(x.isfinite(), (ranks + place).to(x.dtype), x)
    return result


@torch.no_grad()
def upright_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> Tensor:
    """Choose the boxes that no better box of their label overlaps.

    `batched_nms` of mmcv and torchvision moves the labels apart by an offset of the largest coordinate, so
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
