"""Intersection over union of rotated boxes, exact and differentiable.

The area that box B shares with box A, without building the polygon of the intersection: seen from A
(its centre the origin, its sides along the axes), A is |x| < a, |y| < b. With k(u, a) = u clamped to
[-a, a], whose derivative is 1 inside A and 0 outside,

    shared area = integral over B of k'(x, a) k'(y, b) dx dy = integral along B's boundary of k(x, a) dk(y, b)

by Green's theorem. B's boundary is four straight edges p + t e with -1/2 <= t <= 1/2. On an edge, dk(y, b) is
e_y dt while |y| < b, from t0 to t1, and 0 elsewhere; k(x, a) is constant, then linear, then constant, with
bends at s0 and s1, the ends of |x| < a (both moved into [t0, t1]). The integral of such a function is

    e_y (k(x(t0)) (s - t0) + k(x(t1)) (t1 - s))     with s = (s0 + s1) / 2.

So an edge takes two divisions and some clamping, without case distinctions, sorting or intersection points
that degenerate where edges coincide. A rounding error of t is multiplied by the edge's extent, so nearly
parallel edges are as exact as others. Everything is computed in float64, in units of the pair's larger side
and relative to A's centre, whatever the type of the boxes: in float32, boxes with an aspect ratio of 10000
had errors of 2e-3.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from s5.ops.boxes import columns_of, enclosing_boxes, overlapping_pairs

MODES = ("iou", "iof")
PAIRS = 1 << 14  # pairs computed at once on a CPU: few, for the reasons given for the tables in s5.ops.boxes
CUDA_PAIRS = 1 << 22
SHORTEST = 1e-100  # lower bound for the extent of an edge, which limits its inverse
LEAST_AREA = 1e-150  # the gradient can still be divided by its square
NOISE = 2e-15  # relative shared area below which it is rounding error, five times the largest one seen


def rotated_iou(boxes1: Tensor, boxes2: Tensor, mode: str = "iou", aligned: bool = False) -> Tensor:
    """Overlap of rotated boxes.

    On a CPU only pairs whose upright bounding boxes overlap are computed; on CUDA all pairs are, in chunks of
    equal size and without device synchronisation. Memory beyond that of the result is bounded.

    Args:
        boxes1: (..., N, 5) as x, y, w, h, theta in radians, any floating type.
        boxes2: (..., M, 5) with the same leading dimensions; (..., N, 5) if `aligned`, which broadcasts.
        mode: `iou`, or `iof`: the shared area divided by the area of the first box.
        aligned: Compare corresponding boxes, with a gradient. Otherwise compare all pairs, without one.

    Returns:
        (..., N, M), or (..., N) if `aligned`, in [0, 1], with the type of `boxes1`. Boxes without area and
        boxes with non-finite values have overlap 0.

    Raises:
        ValueError: The mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if aligned:
        return _overlap(tuple(columns_of(boxes1)), tuple(columns_of(boxes2)), mode).to(boxes1.dtype)
    with torch.no_grad():
        return _pairwise(boxes1, boxes2, mode)


def overlaps_of_pairs(
    columns1: Tensor, columns2: Tensor, upright1: Tensor, upright2: Tensor, mode: str = "iou"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Compute the overlaps of all pairs whose upright bounding boxes overlap.

    Args:
        columns1: (6, N) of `columns_of`.
        columns2: (6, M).
        upright1: (N, 4) upright bounding boxes; may be shifted so that boxes of different classes do not
            overlap.
        upright2: (M, 4).
        mode: As for `rotated_iou`.

    Yields:
        Indices into the first and the second boxes and the overlap in float64, of a bounded number of pairs.
    """
    for i, j in overlapping_pairs(upright1, upright2, PAIRS):
        yield i, j, _overlap(_take(columns1, i), _take(columns2, j), mode)


def _pairwise(boxes1: Tensor, boxes2: Tensor, mode: str) -> Tensor:
    result = boxes1.new_zeros(*boxes1.shape[:-1], boxes2.shape[-2])
    if result.numel():
        fill = _fill_dense if boxes1.is_cuda else _fill_sparse
        tables = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (result, boxes1, boxes2))
        for out, first, second in zip(*tables, strict=True):
            fill(out, columns_of(first), columns_of(second), mode)
    return result


def _fill_sparse(out: Tensor, first: Tensor, second: Tensor, mode: str) -> None:
    upright1, upright2 = enclosing_boxes(first), enclosing_boxes(second)
    for i, j, overlap in overlaps_of_pairs(first, second, upright1, upright2, mode):
        index = i * out.shape[1] + j
        out.view(-1).scatter_(0, index, overlap.to(out.dtype))  # faster than out[i, j] = ...


def _fill_dense(out: Tensor, first: Tensor, second: Tensor, mode: str) -> None:
    rows = max(1, CUDA_PAIRS // out.shape[1])
    for part, columns in zip(out.split(rows), first[..., None].split(rows, dim=1), strict=True):
        part.copy_(_overlap(tuple(columns), tuple(second[:, None]), mode))


def _take(columns: Tensor, index: Tensor) -> list[Tensor]:
    return [column.index_select(0, index) for column in columns]  # ten times as fast as column[index]


def _overlap(first: Sequence[Tensor], second: Sequence[Tensor], mode: str) -> Tensor:
    shared, area1, area2 = _shared_area(first, second)
    whole = area1 if mode == "iof" else area1 + area2 - shared
    has_area = whole > LEAST_AREA  # false for NaN as well
    return torch.where(has_area, shared / torch.where(has_area, whole, 1), 0)


def _shared_area(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Shared area, area of the first and of the second boxes, in units of the larger side squared."""
    x1, y1, w1, h1, cos1, sin1 = first
    x2, y2, w2, h2, cos2, sin2 = second
    size = torch.maximum(torch.maximum(w1, h1), torch.maximum(w2, h2)).detach()  # cancels in the ratio
    unit = torch.where(size > 0, size, 1)
    w1, h1, w2, h2 = w1 / unit, h1 / unit, w2 / unit, h2 / unit
    # Boxes further apart than both diagonals do not overlap anyway; clamping keeps the values finite.
    dx, dy = ((x2 - x1) / unit).clamp(-4, 4), ((y2 - y1) / unit).clamp(-4, 4)
    px, py = dx * cos1 + dy * sin1, dy * cos1 - dx * sin1
    cos, sin = cos1 * cos2 + sin1 * sin2, cos1 * sin2 - sin1 * cos2
    along, across = (w2 * cos, w2 * sin), (-h2 * sin, h2 * cos)
    half = w1 / 2, h1 / 2
    # Counter-clockwise: along the first axis on one side, back on the other; the same for the second axis.
    shared = _edges((px, py), along, across, half) - _edges((px, py), across, along, half)
    shared = torch.where(shared > NOISE * (w1 + h1) * (w2 + h2), shared, 0)
    area1, area2 = w1 * h1, w2 * h2
    return torch.minimum(shared, torch.minimum(area1, area2)), area1, area2


Vector = tuple[Tensor, Tensor]


def _edges(centre: Vector, edge: Vector, offset: Vector, half: Vector) -> Tensor:
    """Integral along the edge on the side of -offset, minus that along the edge on the side of +offset."""
    ex, ey = edge
    (inverse_x, reach_x), (inverse_y, reach_y) = (
        _crossing(extent, side) for extent, side in zip(edge, half, strict=True)
    )
    total = []
    for sign in (-0.5, 0.5):
        px, py = centre[0] + sign * offset[0], centre[1] + sign * offset[1]
        middle = -py * inverse_y
        t0, t1 = (middle - reach_y).clamp(-0.5, 0.5), (middle + reach_y).clamp(-0.5, 0.5)
        middle = -px * inverse_x
        s = (torch.clamp(middle - reach_x, t0, t1) + torch.clamp(middle + reach_x, t0, t1)) / 2
        k0, k1 = (torch.clamp(px + t * ex, -half[0], half[0]) for t in (t0, t1))
        total.append(k0 * (s - t0) + k1 * (t1 - s))
    return ey * (total[0] - total[1])


def _crossing(extent: Tensor, side: Tensor) -> Vector:
    """Inverse of an edge's extent along an axis, and how long (in t) the edge takes from 0 to `side`."""
    inverse = 1 / torch.where(extent.abs() > SHORTEST, extent, SHORTEST)
    return inverse, side * inverse.abs()
