"""Strips of columns that a wide image is divided into for its prediction in windows."""

from bisect import bisect_right
from dataclasses import dataclass

from s5.models.inference import Inference, window_starts

SUMS_BYTES = 1 << 30  # of the probabilities of a band, above which an image is divided


@dataclass(frozen=True)
class Strip:
    """Columns of an image that are predicted on their own.

    Attributes:
        left: first column that is read.
        right: column after the last that is read.
        start: first column of the result.
        stop: column after the last of the result.
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
        width: columns of the image.
        how: its windows; in the other modes an image is not divided.
        classes: number of classes of all tasks that are predicted together.
        limit: bytes that the probabilities of a band may take, by default :data:`SUMS_BYTES`. A strip is
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
