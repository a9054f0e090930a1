"""Prediction of images of any size: at their original size, resized, or in overlapping windows.

The network is a callable from windows to class probabilities. Channels are never mixed, so they may be the
concatenated classes of several tasks.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.ops.photometric import to_unit
from s5.ranges import Positive

Mode = Literal["original", "resize", "slide_window"]
CHUNK_PIXELS = 1 << 22  # pixels per argmax, which limits the memory of its int64 indices
Probabilities = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w), uint8 or float in [0, 1], to float32 probabilities (B, K, h, w) on its device."""


@dataclass(frozen=True)
class Inference:
    """Inference settings.

    Attributes:
        mode: `original`: one pass at the original size; `resize`: one pass on the image resized to a square
            of `crop` pixels, with probabilities resized back; `slide_window`: overlapping windows.
        crop: Side of a window, or of the resized image, in pixels.
        stride: Step between windows in pixels, 1 to `crop`.

    Raises:
        ValueError: The stride would leave gaps between windows.
    """

    mode: Mode = "slide_window"
    crop: Positive = 512
    stride: Positive = 384

    def __post_init__(self) -> None:
        """Reject windows with gaps between them."""
        if self.mode == "slide_window" and not 1 <= self.stride <= self.crop:
            raise ValueError(
                f"stride {self.stride}: must be between 1 and the crop of {self.crop} pixels, or pixels "
                "between windows would not be predicted"
            )

    def inference(self) -> "Inference":
        """Return the inference settings alone, without the fields that a configuration section adds."""
        return Inference(self.mode, self.crop, self.stride)


@dataclass(frozen=True)
class Rows:
    """An image whose rows are read on demand.

    Attributes:
        height: Height of the image.
        width: Width of the image.
        read: Reads rows [top, bottom): pixels uint8 (3, bottom - top, width), and a bool mask (bottom - top,
            width) that is false where the image has no data, or None if it has data everywhere.
    """

    height: int
    width: int
    read: Callable[[int, int], tuple[Tensor, Tensor | None]]


def rows_of(image: Tensor) -> Rows:
    """Wrap an image (3, H, W) in memory as :class:`Rows`."""
    height, width = image.shape[-2:]
    return Rows(height, width, lambda top, bottom: (image[:, top:bottom], None))


@torch.inference_mode()
def predict_bands(
    probabilities: Probabilities,
    rows: Rows,
    inference: Inference,
    device: torch.device | str = "cpu",
    batch_size: int = 4,
) -> Iterator[tuple[int, Tensor]]:
    """Compute the class probabilities of an image, from top to bottom.

    Args:
        probabilities: The network.
        rows: The image.
        inference: Inference settings.
        device: Device on which `probabilities` expects its images.
        batch_size: Windows per pass.

    Yields:
        First row of a band, and its probabilities (K, rows, W), float32, on the device of the network. With
        `slide_window`, only the rows of one window are kept, and a band is overwritten when the next one is
        computed; in the other modes, a single band covers the image. Windows without any data are skipped;
        pixels that only they cover get probability 0 for every class.
    """
    if inference.mode == "slide_window":
        yield from _slide_bands(probabilities, rows, inference.crop, inference.stride, device, batch_size)
        return
    images = _to_device(rows.read(0, rows.height)[0], device)[None]
    if inference.mode == "original":
        yield 0, probabilities(images)[0]
        return
    small = probabilities(resize(to_unit(images), (inference.crop, inference.crop)))
    yield 0, resize(small, (rows.height, rows.width))[0]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Place windows of `crop` pixels along `length` pixels: inside, distinct and without gaps."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def most_probable(band: Tensor, classes: Sequence[int]) -> list[Tensor]:
    """Compute train ids uint8 (rows, W) of every task from concatenated probabilities.

    Args:
        band: Probabilities of all tasks (sum of `classes`, rows, W).
        classes: Number of classes of each task.
    """
    rows = max(1, CHUNK_PIXELS // band.shape[-1])
    return [
        torch.cat([chunk.max(0).indices.to(torch.uint8) for chunk in part.split(rows, dim=1)])
        for part in band.split(list(classes))
    ]


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize float maps (B, C, H, W) bilinearly to `size` (height, width)."""
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False)


def _slide_bands(
    probabilities: Probabilities, rows: Rows, crop: int, stride: int, device: torch.device | str, batch: int
) -> Iterator[tuple[int, Tensor]]:
    """Average the probabilities of overlapping windows with equal weights; each window is computed once.

    The last window of a row or column is shifted to lie inside the image. An image smaller than the crop is a
    single window.
    """
    tops, lefts = (window_starts(length, crop, stride) for length in (rows.height, rows.width))
    windows = _in_batches(probabilities, _windows(rows, tops, lefts, crop, device), batch)
    size = min(crop, rows.height)
    counts = torch.zeros(1, size, 1)  # number of windows that cover each row; below, each column
    columns = torch.zeros(rows.width)
    for left in lefts:
        columns[left : left + crop] += 1
    sums = torch.zeros(0)
    for top, next_top in zip(tops, [*tops[1:], rows.height], strict=True):
        for left in lefts:
            window = next(windows)
            if window is None:
                continue
            if not len(sums):
                sums = window.new_zeros(len(window), size, rows.width)
            sums[..., left : left + crop] += window
        counts += 1
        done = next_top - top
        yield top, sums[:, :done].div_((counts[:, :done] * columns).to(sums.device, non_blocking=True))
        _scroll(sums, done)
        _scroll(counts, done)


def _scroll(sums: Tensor, done: int) -> None:
    """Shift the rows (C, rows, W) up by `done` and fill with zeros, in place to save memory."""
    kept = sums.shape[1] - done
    for start in range(0, kept, done):  # in blocks whose source and destination do not overlap
        stop = min(start + done, kept)
        sums[:, start:stop] = sums[:, start + done : stop + done]
    sums[:, kept:] = 0


def _windows(
    rows: Rows, tops: list[int], lefts: list[int], crop: int, device: torch.device | str
) -> Iterator[Tensor | None]:
    """Yield all windows (3, h, w) on the device, row by row; each row of windows is copied there at once.

    None stands for a window without any data, except for the first, which determines the number of classes.
    """
    first = True
    for top in tops:
        pixels, valid = rows.read(top, min(top + crop, rows.height))
        strip = _to_device(pixels, device)
        for left in lefts:
            skipped = valid is not None and not first and not valid[:, left : left + crop].any()
            yield None if skipped else strip[..., left : left + crop]
            first = False


def _in_batches(
    probabilities: Probabilities, windows: Iterator[Tensor | None], batch: int
) -> Iterator[Tensor | None]:
    """Yield probabilities (K, h, w) of the windows, batched across rows; None stays None."""
    while group := list(islice(windows, batch)):
        present = [window for window in group if window is not None]
        results: Iterator[Tensor] = iter(())
        if present:
            results = iter(probabilities(torch.stack(present).contiguous(memory_format=torch.channels_last)))
        yield from (None if window is None else next(results) for window in group)


def _to_device(pixels: Tensor, device: torch.device | str) -> Tensor:
    """Copy to the device, for a GPU asynchronously from page-locked memory."""
    if torch.device(device).type == "cuda" and not pixels.is_cuda:
        # `pin_memory` would copy the memory span of all channels to get some rows of each.
        pixels = torch.empty_like(pixels, pin_memory=True, memory_format=torch.contiguous_format).copy_(
            pixels
        )
    return pixels.to(device, non_blocking=True)


SUMS_BYTES = 1 << 30  # size of a band's probabilities above which an image is split into strips


@dataclass(frozen=True)
class Strip:
    """Columns of an image that are predicted independently.

    Attributes:
        left: First column to read.
        right: Column after the last one to read.
        start: First column of the result.
        stop: Column after the last one of the result.
    """

    left: int
    right: int
    start: int
    stop: int


def column_strips(width: int, inference: Inference, classes: int, limit: int | None = None) -> list[Strip]:
    """Split a wide image into strips, so that memory does not grow with its width.

    Strips start and end at window borders of the full image and therefore give identical results. Windows
    across the border of two strips are computed in both.

    Args:
        width: Width of the image.
        inference: Inference settings; images are split with `slide_window` only.
        classes: Number of classes of all tasks that are predicted together.
        limit: Maximum size in bytes of a band's probabilities, by default :data:`SUMS_BYTES`. A strip is
            never narrower than the windows that cover one column.

    Returns:
        Strips from left to right; a single one if the image is narrow enough.
    """
    if inference.mode != "slide_window":
        return [Strip(0, width, 0, width)]
    columns = (SUMS_BYTES if limit is None else limit) // (4 * classes * inference.crop)
    lefts = window_starts(width, inference.crop, inference.stride)
    ends = [min(left + inference.crop, width) for left in lefts]
    strips: list[Strip] = []
    start = 0
    while start < width:
        first = bisect_right(ends, start)
        last = max(bisect_right(lefts, start), bisect_right(ends, lefts[first] + columns)) - 1
        stop = lefts[last + 1] if last + 1 < len(lefts) else width
        strips.append(Strip(lefts[first], ends[last], start, stop))
        start = stop
    return strips
