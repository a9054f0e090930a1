"""Prediction of images of any size: at their own size, resized, or in overlapping windows.

Everything goes through one callable, windows in and class probabilities out. Channels are only ever averaged
and cut, so that they may hold the classes of several tasks one after the other.
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
CHUNK_PIXELS = 1 << 22  # of which the most probable class is sought at a time
Probabilities = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w), uint8 or float in [0, 1], to float32 probabilities (B, K, h, w) on its device."""


@dataclass(frozen=True)
class Inference:
    """How an image is predicted.

    Attributes:
        mode: `original`: in one pass at its size; `resize`: resized to a square of `crop` pixels, and
            the probabilities back; `slide_window`: in overlapping windows.
        crop: Side of a window, or of the resized image, in pixels.
        stride: Step between windows in pixels, 1 to `crop`.

    Raises:
        ValueError: The windows would leave gaps.
    """

    mode: Mode = "original"
    crop: Positive = 512
    stride: Positive = 384

    def __post_init__(self) -> None:
        """Refuse windows with gaps between them."""
        if self.mode == "slide_window" and not 1 <= self.stride <= self.crop:
            raise ValueError(
                f"stride must be between 1 and the crop of {self.crop} pixels, got {self.stride}: pixels "
                "between windows would be lost"
            )

    def inference(self) -> "Inference":
        """These settings alone, without what a section of a configuration adds to them."""
        return Inference(self.mode, self.crop, self.stride)


@dataclass(frozen=True)
class Rows:
    """An image whose rows are read when they are needed.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        read: Rows [top, bottom) as uint8 (3, bottom - top, width), and bool (bottom - top, width), false
            where the image has no data; None if it has data everywhere.
    """

    height: int
    width: int
    read: Callable[[int, int], tuple[Tensor, Tensor | None]]


def rows_of(image: Tensor) -> Rows:
    """The rows of an image (3, H, W) in memory."""
    height, width = image.shape[-2:]
    return Rows(height, width, lambda top, bottom: (image[:, top:bottom], None))


@torch.inference_mode()
def predict_bands(
    probabilities: Probabilities,
    rows: Rows,
    how: Inference,
    device: torch.device | str = "cpu",
    batch_size: int = 4,
) -> Iterator[tuple[int, Tensor]]:
    """Compute the class probabilities of an image, from top to bottom.

    Args:
        probabilities: The network.
        rows: The image.
        how: In one pass, or in which windows.
        device: Where `probabilities` takes its images.
        batch_size: Windows in one pass.

    Yields:
        First row of a band, and its probabilities (K, rows, W), float32, on the device of the network. In
        windows, no more than the rows of one window are held, and a band is overwritten when the next one is
        asked for; otherwise the one band is the whole image. Windows wholly without data are skipped; what
        only they cover has probability 0 for every class.
    """
    if how.mode == "slide_window":
        yield from _slide_bands(probabilities, rows, how.crop, how.stride, device, batch_size)
        return
    images = _to_device(rows.read(0, rows.height)[0], device)[None]
    if how.mode == "original":
        yield 0, probabilities(images)[0]
        return
    small = probabilities(resize(to_unit(images), (how.crop, how.crop)))
    yield 0, resize(small, (rows.height, rows.width))[0]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Place windows of `crop` pixels along `length` pixels: all inside, no two alike, no gap."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def most_probable(band: Tensor, classes: Sequence[int]) -> list[Tensor]:
    """Train ids uint8 (rows, W) of every task from its probabilities (K, rows, W), one after the other.

    Args:
        band: Probabilities of all tasks (sum of `classes`, rows, W).
        classes: Number of classes of each task.
    """
    rows = max(1, CHUNK_PIXELS // band.shape[-1])  # the indices are int64 until they are made small
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
    """Average the probabilities of overlapping windows with equal weights; each is computed once.

    The last window of a row or column is shifted inside the image; an image smaller than the crop is one
    window.
    """
    tops, lefts = (window_starts(length, crop, stride) for length in (rows.height, rows.width))
    windows = _in_batches(probabilities, _windows(rows, tops, lefts, crop, device), batch)
    size = min(crop, rows.height)
    counts = torch.zeros(1, size, 1)  # windows that cover a row, and a column
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
    """Move the rows (C, rows, W) up by `done`, zeros after them; in place, for they can be many."""
    kept = sums.shape[1] - done
    for start in range(0, kept, done):  # blocks that do not overlap what they are copied to
        stop = min(start + done, kept)
        sums[:, start:stop] = sums[:, start + done : stop + done]
    sums[:, kept:] = 0


def _windows(
    rows: Rows, tops: list[int], lefts: list[int], crop: int, device: torch.device | str
) -> Iterator[Tensor | None]:
    """All windows (3, h, w) on the device, by rows; the pixels go there once for every row of windows.

    None stands for a window wholly without data, except the first one, which tells the number of classes.
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
    """Probabilities (K, h, w) of the windows, which may be of several rows in one batch; None stays None."""
    while group := list(islice(windows, batch)):
        present = [window for window in group if window is not None]
        found: Iterator[Tensor] = iter(())
        if present:
            found = iter(probabilities(torch.stack(present).contiguous(memory_format=torch.channels_last)))
        yield from (None if window is None else next(found) for window in group)


def _to_device(pixels: Tensor, device: torch.device | str) -> Tensor:
    """Copy to the device; from page-locked memory, so that a GPU computes meanwhile."""
    if torch.device(device).type == "cuda" and not pixels.is_cuda:
        # Not `pin_memory`, which takes the span in memory of all channels for some rows of each.
        pixels = torch.empty_like(pixels, pin_memory=True, memory_format=torch.contiguous_format).copy_(
            pixels
        )
    return pixels.to(device, non_blocking=True)


SUMS_BYTES = 1 << 30  # of the probabilities of a band, above which an image is divided


@dataclass(frozen=True)
class Strip:
    """Columns of an image that are predicted on their own.

    Attributes:
        left: First column that is read.
        right: Column after the last that is read.
        start: First column of the result.
        stop: Column after the last of the result.
    """

    left: int
    right: int
    start: int
    stop: int


def column_strips(width: int, how: Inference, classes: int, limit: int | None = None) -> list[Strip]:
    """Divide a wide image, so that the memory of its prediction does not grow with its width.

    A strip begins and ends with windows of the whole image, so that predicted on its own it has the same
    result; the windows that cover its border are computed for both sides.

    Args:
        width: Columns of the image.
        how: Its windows; in the other modes an image is not divided.
        classes: Number of classes of all tasks that are predicted together.
        limit: Bytes that the probabilities of a band may take, by default :data:`SUMS_BYTES`. A strip is
            never narrower than the windows over one column.

    Returns:
        Strips from left to right; a single one where the image is narrow enough.
    """
    if how.mode != "slide_window":
        return [Strip(0, width, 0, width)]
    columns = (SUMS_BYTES if limit is None else limit) // (4 * classes * how.crop)
    lefts = window_starts(width, how.crop, how.stride)
    ends = [min(left + how.crop, width) for left in lefts]
    strips: list[Strip] = []
    start = 0
    while start < width:
        first = bisect_right(ends, start)
        last = max(bisect_right(lefts, start), bisect_right(ends, lefts[first] + columns)) - 1
        stop = lefts[last + 1] if last + 1 < len(lefts) else width
        strips.append(Strip(lefts[first], ends[last], start, stop))
        start = stop
    return strips
