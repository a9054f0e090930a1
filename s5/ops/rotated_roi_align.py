"""RoIAlign of rotated regions, with a gradient for the features.

A region is divided into bins along its own axes; a bin is the mean of samples on a regular grid inside it,
and a sample is bilinearly interpolated from the four surrounding pixels. So the output is a sparse matrix
(bins x pixels) times the features (pixels x channels), and the gradient is the transposed matrix times the
gradient of the bins. Both products are an `embedding_bag`: for each row, a weighted sum of a few rows of the
other factor. There are no atomic additions, so both directions are deterministic, also on CUDA.

Conventions, those of mmcv's RoIAlignRotated (and of torchvision's `roi_align` at angle 0):

- `aligned` shifts by half a pixel, so that pixel 0 covers 0..1 and its value is at 0.5. Without it,
  integer coordinates are pixel centres and a region is at least 1 x 1 pixel of the feature map.
- A sample more than a pixel outside the feature map is 0; a closer one takes the value of the border.
- `sampling_ratio` 0 chooses the grid by region: `ceil(size of a bin)` samples along each axis, at most
  128, which matters only for bins larger than 128 pixels of the feature map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SAMPLES = 1 << 20  # samples whose taps are held at once, which bounds the memory
CPU_SAMPLES = 8000  # samples computed at once on a CPU: few, for the reasons given in s5.ops.boxes
MOST = 128  # largest number of samples along an axis of a bin, when chosen by region


@dataclass(frozen=True)
class Sampling:
    """How regions are sampled.

    Args:
        output_size: Bins (height, width).
        spatial_scale: Size of the feature map relative to the image that regions are measured in.
        sampling_ratio: Samples along each axis of a bin; 0 chooses them by the region's size.
        aligned: Half-pixel shift, see the module.
        clockwise: Whether positive angles turn clockwise on the screen, where y points down.
    """

    output_size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int = 0
    aligned: bool = True
    clockwise: bool = True


def rotated_roi_align(features: Tensor, rois: Tensor, sampling: Sampling) -> Tensor:
    """Pool rotated regions of feature maps.

    With a fixed sampling ratio nothing synchronises with a CUDA device; a ratio chosen by region
    synchronises once forward and once backward, for the number of samples.

    Args:
        features: (B, C, H, W), any floating type; half precision is computed in float32.
        rois: (N, 6): image index, x, y, w, h in image pixels, theta in radians. They get no gradient.
        sampling: Size of the output and conventions.

    Returns:
        (N, C, rows, columns of bins) with the type of `features`, in channels-last memory format.
    """
    return _RotatedRoiAlign.apply(features, rois, sampling)


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    shape: torch.Size
    sampling: Sampling


class _RotatedRoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, features: Tensor, rois: Tensor, sampling: Sampling) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.sampling = features.shape, sampling
        return pool(features, rois, sampling)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        (rois,) = ctx.saved_tensors
        return unpool(grad, rois, ctx.shape, ctx.sampling), None, None


def pool(features: Tensor, rois: Tensor, sampling: Sampling) -> Tensor:
    """Forward of `rotated_roi_align`."""
    batch, channels, height, width = features.shape
    table = features.to(_computed_in(features)).permute(0, 2, 3, 1).contiguous().view(-1, channels)
    bins = table.new_empty(len(rois), *sampling.output_size, channels)
    rows = bins.view(-1, channels)
    for taps in _all_taps(rois, (height, width), table.dtype, sampling):
        rows[taps.begin : taps.begin + len(taps.starts)] = _weighted_sums(table, *taps.by_bin())
    return bins.permute(0, 3, 1, 2).to(features.dtype)


def unpool(grad: Tensor, rois: Tensor, shape: Sequence[int], sampling: Sampling) -> Tensor:
    """Gradient of the features, of the given shape, from the gradient of the output of `pool`."""
    batch, channels, height, width = shape
    rows = grad.to(_computed_in(grad)).permute(0, 2, 3, 1).contiguous().view(-1, channels)
    result = rows.new_zeros(batch * height * width, channels)
    for taps in _all_taps(rois, (height, width), rows.dtype, sampling):
        result += _weighted_sums(rows, *taps.by_pixel(len(result)))
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)


class _Regions(NamedTuple):
    """Regions in pixels of the feature map, (N,) each."""

    image: Tensor
    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    cos: Tensor
    sin: Tensor
    rows: Tensor  # samples of a bin along the region's height
    columns: Tensor

    def part(self, begin: int, end: int) -> "_Regions":
        return _Regions(*(values[begin:end] for values in self))


class _Taps(NamedTuple):
    """Rows of the matrix (bins x pixels), sorted by bin; an entry adds weight * pixel to its bin."""

    begin: int  # first row
    starts: Tensor  # (rows,) first entry of each
    bins: Tensor  # (entries,)
    pixels: Tensor
    weights: Tensor

    def by_bin(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of the entries, first entry of each row, weights."""
        return self.pixels, self.starts, self.weights

    def by_pixel(self, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same entries sorted by pixel: bins of the entries, first entry of each pixel, weights."""
        ordered, order = self.pixels.sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(pixels, device=order.device))
        return self.bins.index_select(0, order), starts, self.weights.index_select(0, order)


def _computed_in(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _weighted_sums(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


def _all_taps(rois: Tensor, size: tuple[int, int], dtype: torch.dtype, sampling: Sampling) -> Iterator[_Taps]:
    """Yield the matrix in chunks of regions."""
    bins = sampling.output_size[0] * sampling.output_size[1]
    regions = _regions(rois, sampling)
    waiting: list[_Taps] = []
    entries = 0
    for begin, end, samples in _pieces(regions, bins, sampling.sampling_ratio):
        if waiting and entries + 4 * samples > 4 * SAMPLES:
            yield _joined(waiting)
            waiting, entries = [], 0
        taps = _taps(regions.part(begin, end), samples, size, sampling.output_size)
        _, starts, its_bins, pixels, weights = taps
        first = begin * bins
        waiting.append(_Taps(first, starts + entries, its_bins + first, pixels, weights.to(dtype)))
        entries += 4 * samples
    if waiting:
        yield _joined(waiting)


def _joined(pieces: Sequence[_Taps]) -> _Taps:
    return _Taps(pieces[0].begin, *map(torch.cat, zip(*(piece[1:] for piece in pieces), strict=True)))


def _regions(rois: Tensor, sampling: Sampling) -> _Regions:
    image, *box, theta = rois.to(_computed_in(rois)).unbind(1)
    x, y, w, h = (values * sampling.spatial_scale for values in box)
    if sampling.aligned:
        x, y = x - 0.5, y - 0.5
    else:
        w, h = w.clamp(min=1), h.clamp(min=1)
    theta = theta if sampling.clockwise else -theta
    if sampling.sampling_ratio > 0:
        rows = columns = torch.full_like(image, sampling.sampling_ratio, dtype=torch.long)
    else:
        rows, columns = (
            (extent / bins).ceil().nan_to_num(0).clamp(0, MOST).long()
            for extent, bins in zip((h, w), sampling.output_size, strict=True)
        )
    return _Regions(image.long(), x, y, w, h, theta.cos(), theta.sin(), rows, columns)


def _pieces(regions: _Regions, bins: int, ratio: int) -> Iterator[tuple[int, int, int]]:
    """Divide the regions into chunks of bounded memory: begin, end, number of samples."""
    count = len(regions.image)
    limit = SAMPLES if regions.image.is_cuda else CPU_SAMPLES
    if ratio > 0:
        step = max(1, limit // (bins * ratio * ratio))
        for begin in range(0, count, step):
            end = min(begin + step, count)
            yield begin, end, (end - begin) * bins * ratio * ratio
        return
    ends = (regions.rows * regions.columns * bins).cumsum(0).tolist()  # synchronises with the device
    begin = done = 0
    for end in range(1, count + 1):
        if end == count or ends[end] - done > limit:
            yield begin, end, ends[end - 1] - done
            begin, done = end, ends[end - 1]


def _taps(regions: _Regions, samples: int, size: tuple[int, int], output_size: tuple[int, int]) -> _Taps:
    """Taps of all samples, four each.

    Args:
        regions: The regions of one piece.
        samples: Their number of samples, passed in to avoid a device synchronisation.
        size: Height and width of the feature map.
        output_size: Bins (height, width).
    """
    device, (high, wide) = regions.image.device, output_size
    counts = (regions.rows * regions.columns)[:, None].expand(-1, high * wide).flatten()
    starts = counts.cumsum(0) - counts
    first = torch.zeros(samples + 1, dtype=torch.long, device=device)
    bins = first.scatter_add_(0, starts, torch.ones_like(starts))[:-1].cumsum(0) - 1
    number = torch.arange(samples, device=device) - starts.index_select(0, bins)  # within its bin
    sampled = _Regions(*(values.index_select(0, bins // (high * wide)) for values in regions))
    row, column = (
        part.to(sampled.x.dtype) + 0.5 for part in (number // sampled.columns, number % sampled.columns)
    )
    # Coordinates along the region's own axes relative to its centre, then rotated and shifted.
    v = sampled.h * ((row / sampled.rows + bins // wide % high) / high - 0.5)
    u = sampled.w * ((column / sampled.columns + bins % wide) / wide - 0.5)
    x = sampled.x + u * sampled.cos - v * sampled.sin
    y = sampled.y + u * sampled.sin + v * sampled.cos
    pixels, weights = _bilinear(sampled.image, x, y, size)
    weights = weights / (sampled.rows * sampled.columns)
    return _Taps(0, 4 * starts, bins.repeat(4, 1).T.flatten(), pixels.T.flatten(), weights.T.flatten())


def _bilinear(image: Tensor, x: Tensor, y: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flat indices (4, S) of the pixels around points (S,) and their weights, 0 far outside."""
    height, width = size
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    x, y = torch.where(inside, x, 0).clamp(0, width - 1), torch.where(inside, y, 0).clamp(0, height - 1)
    left, top = x.long(), y.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    part_x, part_y = x - left, y - top
    upper, lower = (image * height + top) * width, (image * height + bottom) * width
    pixels = torch.stack((upper + left, upper + right, lower + left, lower + right))
    part_y, rest_y = torch.where(inside, part_y, 0), torch.where(inside, 1 - part_y, 0)
    weights = torch.stack((rest_y * (1 - part_x), rest_y * part_x, part_y * (1 - part_x), part_y * part_x))
    return pixels, weights
