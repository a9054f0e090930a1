"""Non-maximum suppression of rotated boxes.

Greedy and exact: in order of decreasing score, a box is kept unless its IoU with a kept box of its class is
**greater** than the threshold. (torchvision's NMS and mmcv's on CUDA compare the same way; mmcv's on a CPU
also suppresses at equality. The two differ only where an IoU equals the threshold: at 0, where ours
suppresses boxes that overlap at all, and at 1.) Among equal scores the first box wins, so the result is
deterministic.

Boxes are processed in blocks by decreasing score. The boxes kept in a block suppress later boxes before the
next block is processed, which bounds the memory for any number of boxes; most boxes of a dense scene
do not overlap.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torchvision
from torch import Tensor

from s5.ops.boxes import Pairs, columns_of, enclosing_boxes
from s5.ops.rotated_iou import overlaps_of_pairs, rotated_iou

BLOCK = 4096
CUDA_CELLS = 1 << 26  # cells of the table of conflicts between a block and later boxes
ROUNDS = 16


def rotated_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Suppress boxes that overlap a box of their class with a higher score.

    On a CPU only pairs whose bounding boxes overlap are computed, on CUDA all pairs. On CUDA, up to 4096
    boxes take one device synchronisation, for the number of kept boxes (and another for every 16 links of the
    longest chain of boxes that depend on each other). More boxes are processed in blocks of 4096, each of
    which takes another synchronisation, for the number of remaining boxes.

    Args:
        boxes: (N, 5) as x, y, w, h, theta in radians.
        scores: (N,).
        threshold: IoU in [0, 1] above which the box with the lower score is removed.
        labels: (N,) integer classes; boxes of different classes do not suppress each other. None: one class.

    Returns:
        (K,) int64 indices of the kept boxes, by decreasing score.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[kept_in_order(boxes[order], threshold, None if labels is None else labels[order])]


@torch.no_grad()
def kept_in_order(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """`rotated_nms` for boxes sorted by decreasing score.

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
    """Conflicts between boxes, found among the pairs whose bounding boxes overlap."""

    def __init__(self, boxes: Tensor, threshold: float, labels: Tensor | None) -> None:
        self.columns, self.threshold = columns_of(boxes), threshold
        self.upright = _apart_by_class(enclosing_boxes(self.columns), labels)

    def kept_among(self, block: Tensor) -> Tensor:
        none = block[:0]
        first, second = map(torch.cat, zip((none, none), *self._pairs(block, block), strict=True))
        better = first < second
        kept = _greedy(len(block), first[better].numpy(), second[better].numpy())
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
    """Conflicts between boxes as dense tables; only the result synchronises with the device."""

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
    """Solve greedy suppression for all boxes in parallel, by fixed-point iteration.

    Whether a box is kept depends only on better boxes. Each round recomputes all boxes from the previous
    guess: the first round makes the first box correct, the next one those that depend on it, and so on. When
    a round changes nothing, the greedy result is reached; the number of rounds is the length of the longest
    chain of boxes that depend on each other.

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
    """Suppress boxes one by one; in each conflicting pair (first, second), `first` is the better box."""
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
    """Shift the bounding boxes of each class along the x axis so that different classes do not overlap.

    Overlap depends only on the order of the coordinates, so they are replaced by their ranks: a single
    distant box does not cost the others their precision.
    """
    if labels is None:
        return upright
    x = upright[:, ::2]
    ranks = x.unique(return_inverse=True)[1]
    shift = labels.unique(return_inverse=True)[1][:, None] * x.numel()
    result = upright.clone()
    result[:, ::2] = torch.where(x.isfinite(), (ranks + shift).to(x.dtype), x)
    return result


@torch.no_grad()
def upright_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> Tensor:
    """Suppress upright boxes that overlap a box with the same label and a higher score.

    `batched_nms` of mmcv and torchvision separates labels by an offset of the largest coordinate, so boxes
    with large negative coordinates still overlap other labels, and distant boxes cost the others precision.
    Here the labels are processed one by one, with unshifted boxes. On CUDA this takes one device
    synchronisation and another for every label.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        threshold: IoU above which the box with the lower score is removed.
        labels: (N,) integers; boxes with different labels do not suppress each other.

    Returns:
        (K,) int64 indices of the kept boxes by decreasing score; among equal scores in the original order.
    """
    if not len(boxes):
        return labels.new_zeros(0, dtype=torch.int64)
    order = labels.argsort(stable=True)
    counts = labels[order].unique_consecutive(return_counts=True)[1].tolist()
    kept = [part[torchvision.ops.nms(boxes[part], scores[part], threshold)] for part in order.split(counts)]
    index = torch.cat(kept).sort().values
    return index[scores[index].argsort(descending=True, stable=True)]
