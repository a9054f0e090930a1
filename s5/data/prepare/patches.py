"""Cut images into windows: arithmetic, names and reading."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from s5.data.datasets.shipped import safe_name
from s5.data.folders import tell_apart
from s5.data.image_formats import is_plain_rgb, is_tiff
from s5.data.image_io import read_file, read_image_with_valid
from s5.data.rasters import open_raster
from s5.data.references import Window, find

_PLAIN = {"jpeg": ".jpg", "png": ".png"}


class _Windows(Sequence[Window]):
    """Windows, computed on access, because damaged images can claim billions of pixels."""

    def __init__(self, height: int, width: int, size: int, overlap: int) -> None:
        self._step, self._height, self._width = size - overlap, min(size, height), min(size, width)
        self._last = height - self._height, width - self._width  # first row and column of the last window
        self._columns = 1 - (-self._last[1] // self._step)
        self._rows = 1 - (-self._last[0] // self._step)

    def __len__(self) -> int:
        return self._rows * self._columns

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, column = divmod(range(len(self))[index], self._columns)
        top, left = (min(i * self._step, last) for i, last in zip((row, column), self._last, strict=True))
        return Window(top, left, self._height, self._width)


def windows(height: int, width: int, size: int, overlap: int = 0) -> Sequence[Window]:
    """Square windows that cover an image, row by row.

    The last window of a row or column is shifted inside the image, so it overlaps its neighbour by more. If a
    side of the image is shorter than `size`, the windows have its length.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        size: Side of the windows in pixels.
        overlap: Pixels that neighbours share; less than `size`.
    """
    return _Windows(height, width, size, overlap)


def tiles(height: int, width: int, size: int) -> list[Window]:
    """Windows that cover an image without overlap, equal in size to within a pixel, at most `size` per side.

    For images that are scored: pixels in several windows would count more than once.
    """
    rows, columns = _even(height, size), _even(width, size)
    return [Window(top, left, h, w) for top, h in rows for left, w in columns]


def _even(length: int, size: int) -> list[tuple[int, int]]:
    parts = -(-length // size)
    edges = [length * i // parts for i in range(parts + 1)]
    return [(begin, end - begin) for begin, end in zip(edges, edges[1:], strict=False)]


class Readable(Protocol):
    """An image of known size that gives windows as uint8 (height, width, 3) RGB.

    Attributes:
        height: Rows of the full image.
        width: Columns of the full image.
        declares_no_data: Whether the file declares in any way that pixels may have no data.
        may_lack_data: Whether pixels may have no data; if False, valid masks need not be read.
        note: Remark on how it is read, for the user; may be empty.
    """

    height: int
    width: int
    declares_no_data: bool
    may_lack_data: bool
    note: str

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window that begins at `top`, `left`."""
        ...

    def read_with_valid(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The window, and bool (height, width) where it has data; None if that is everywhere."""
        ...


class ReadableMask(Protocol):
    """A mask of known size that gives windows of raw values, uint8 (height, width).

    Attributes:
        height: Rows of the full mask.
        width: Columns of the full mask.
        note: Remark on how it was read, for the user; may be empty.
    """

    height: int
    width: int
    note: str

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window that begins at `top`, `left`."""
        ...


class Decoded:
    """A full image or mask in memory."""

    def __init__(self, array: np.ndarray, note: str = "", valid: np.ndarray | None = None) -> None:
        self._array, self.note, self._valid = array, note, valid
        self.height, self.width = array.shape[:2]
        self.declares_no_data = self.may_lack_data = valid is not None

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window that begins at `top`, `left`, as a view."""
        return Window(top, left, height, width).of(self._array)

    def read_with_valid(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The window, and where it has data."""
        window = Window(top, left, height, width)
        valid = None if self._valid is None else window.of(self._valid)
        return window.of(self._array), None if valid is None or valid.all() else valid


@contextmanager
def open_image(path: str | Path) -> Iterator[Readable]:
    """Open an image for cutting: a TIFF by windows, in bounded memory; other formats are decoded in full.

    Of a reference with a window, this window is the image.

    Raises:
        ImageError: The file cannot be read.
    """
    if is_tiff(path):
        with open_raster(path) as raster:
            yield raster
    else:
        image, valid = read_image_with_valid(path)
        yield Decoded(image, valid=valid)


def unique_stems(keys: Sequence[str]) -> list[str]:
    """Paths of the patches of each file, without extension (see `safe_name`), made unique."""
    return tell_apart([safe_name(key[: key.rindex(".")]) for key in keys], keys)


def plain_file(path: Path) -> tuple[str, bytes] | None:
    """Extension and contents of an 8-bit RGB JPEG or PNG, which can be copied unchanged; None for others.

    Raises:
        ImageError: The file cannot be read.
    """
    if (reference := find(path)) is not None and reference.window is not None:
        return None
    kind, data = read_file(path)
    return (_PLAIN[kind], data) if is_plain_rgb(data, kind) else None
