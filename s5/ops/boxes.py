"""Geometry shared by the operators on rotated boxes.

A rotated box is (x, y, w, h, theta): centre, size along its own axes, and the angle in radians from
the x axis to the box's first axis. The direction of rotation on the screen (y points down in an
image) does not matter here, as long as it is the same for all boxes. A box whose width or height is not
positive has no area.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Boxes compared at once. A table of this size stays in the cache, and PyTorch does not split it over threads:
# thread synchronisation takes longer than the table, especially when other processes are running.
ROWS = 32
COLUMNS = 1000
FURTHEST = torch.finfo(torch.float64).max

Pairs = tuple[Tensor, Tensor]


def columns_of(boxes: Tensor) -> Tensor:
    """Boxes (..., 5) as float64 rows (6, ...) of x, y, w, h >= 0, cos, sin, for the computations."""
    x, y, w, h, theta = boxes.double().unbind(-1)
    return torch.stack((x, y, w.clamp(min=0), h.clamp(min=0), theta.cos(), theta.sin()))


def enclosing_boxes(columns: Tensor) -> Tensor:
    """Upright bounding boxes of rotated boxes.

    Args:
        columns: (6, ...) of `columns_of`.

    Returns:
        (..., 4) as x1, y1, x2, y2, finite where the box has an area, else NaN.
    """
    x, y, w, h, cos, sin = columns
    half_x, half_y = (w * cos.abs() + h * sin.abs()) / 2, (w * sin.abs() + h * cos.abs()) / 2
    corners = torch.stack((x - half_x, y - half_y, x + half_x, y + half_y), dim=-1)
    has_area = ((w > 0) & (h > 0))[..., None]
    return torch.where(has_area, corners.clamp(-FURTHEST, FURTHEST), torch.nan)


def overlapping_pairs(first: Tensor, second: Tensor, count: int) -> Iterator[Pairs]:
    """Find the pairs of upright boxes that overlap or touch, without trying all of them.

    Touching counts, because a box smaller than the rounding error of its position is a point here.

    Both sets are sorted by their left side. A block of the first set can then only overlap a
    contiguous range of the second, and only this range is compared.

    Args:
        first: (N, 4) x1, y1, x2, y2. A box with a value that is not finite overlaps nothing.
        second: (M, 4).
        count: Number of pairs to yield at once.

    Yields:
        Indices (P,) into `first` and into `second`; P is `count`, or less in the last item.
    """
    waiting: list[Pairs] = []
    length = 0
    for pairs in _pairs_by_rows(first, second):
        waiting.append(pairs)
        length += len(pairs[0])
        if length >= count:
            *full, last = _split(waiting, count)
            yield from full
            waiting, length = [last], len(last[0])
    if waiting:
        yield from _split(waiting, count)


def _split(pairs: list[Pairs], count: int) -> list[Pairs]:
    first, second = (torch.cat(indices) for indices in zip(*pairs, strict=True))
    return list(zip(first.split(count), second.split(count), strict=True))


def _pairs_by_rows(first: Tensor, second: Tensor) -> Iterator[Pairs]:
    to_first, to_second = _by_left_side(first), _by_left_side(second)
    if not len(to_first) or not len(to_second):
        return
    first, (x1, y1, x2, y2) = first[to_first], second[to_second].T.contiguous()
    blocks, furthest = first.split(ROWS), x2.cummax(0).values
    begins = torch.searchsorted(furthest, first[::ROWS, 0].contiguous()).tolist()
    ends = torch.searchsorted(x1, torch.stack([block[:, 2].max() for block in blocks]), right=True).tolist()
    for row, block, begin, end in zip(range(0, len(first), ROWS), blocks, begins, ends, strict=True):
        left, top, right, bottom = block[..., None].unbind(1)
        for column in range(begin, end, COLUMNS):
            part = slice(column, min(column + COLUMNS, end))
            overlap = (left <= x2[part]) & (x1[part] <= right) & (top <= y2[part]) & (y1[part] <= bottom)
            i, j = overlap.nonzero(as_tuple=True)
            yield to_first.index_select(0, row + i), to_second.index_select(0, column + j)


def _by_left_side(boxes: Tensor) -> Tensor:
    finite = boxes.isfinite().all(-1).nonzero().squeeze(1)
    return finite[boxes[finite, 0].argsort(stable=True)]
