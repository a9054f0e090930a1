"""Cut images into windows: arithmetic, names and reading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from s5.data.geotiff import open_raster
from s5.data.image_formats import detect_format
from s5.data.image_io import read_image


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of ``array`` (H, W, ...), as a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def name(self, stem: str) -> str:
        """Stem of the patch, ``stem_top_bottom_left_right``, as the iSAID development kit names them."""
        return f"{stem}_{self.top}_{self.top + self.height}_{self.left}_{self.left + self.width}"


def windows(height: int, width: int, size: int, overlap: int = 0) -> list[Window]:
    """Square windows that cover an image, row by row.

    The last window of a row or column is shifted inside instead of reaching over the border, so it overlaps
    its neighbour by more. A side that is shorter than ``size`` gives windows of that length.

    Args:
        height: rows of the image.
        width: columns of the image.
        size: side of the windows in pixels.
        overlap: pixels that neighbours share; less than ``size``.
    """
    tops, lefts = _starts(height, size, overlap), _starts(width, size, overlap)
    return [Window(top, left, min(size, height), min(size, width)) for top in tops for left in lefts]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    starts = range(0, length - size, size - overlap)
    return [*starts, length - size]


class Readable(Protocol):
    """An image of known size that gives windows as uint8 (height, width, 3) RGB."""

    height: int
    width: int

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window that begins at ``top``, ``left``."""
        ...


class _Decoded:
    """A whole image in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.height, self.width = array.shape[:2]

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return Window(top, left, height, width).of(self._array)


@contextmanager
def open_image(path: Path) -> Iterator[Readable]:
    """Open an image for cutting: a TIFF by windows, in bounded memory; other formats decoded as a whole.

    Raises:
        ImageError: the file cannot be read.
    """
    if _is_tiff(path):
        with open_raster(path) as raster:
            yield raster
    else:
        yield _Decoded(read_image(path))


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return detect_format(file.read(16)) == "tiff"
    except OSError:
        return False  # read_image says what is wrong


def safe_name(text: str) -> str:
    """``text`` with white space replaced by underscores, so that names stand in split lines as they are."""
    return re.sub(r"\s+", "_", text)
