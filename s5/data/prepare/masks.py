"""Masks of any kind for cutting: index masks, colour-coded ones, and TIFFs too large for memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from s5.data.errors import ImageError
from s5.data.image_io import read_image, read_mask
from s5.data.label_table import LabelTable
from s5.data.prepare.patches import Decoded, ReadableMask, is_tiff

_SAMPLE_SIDE = 1024  # whether a TIFF is colour-coded is seen on a copy reduced to about this side
_COLORS = ("RGB", "RGBA")


@contextmanager
def open_mask(path: Path, table: LabelTable) -> Iterator[ReadableMask]:
    """Open a mask: a TIFF by windows, in bounded memory; other formats decoded as a whole.

    A mask of one channel (or of equal ones) holds the table's raw values; one whose channels differ holds the
    colours of its palette.

    Raises:
        ImageError: the file cannot be read, or is no mask.
        LabelError: a value or colour is outside the table.
    """
    if not is_tiff(path):
        yield Decoded(_decode(path, table))
        return
    with warnings.catch_warnings(), _decoding(path):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # map coordinates are no concern here
        dataset = rasterio.open(path, driver="GTiff")
    with dataset:
        yield _TiffMask(dataset, path, table)


def _decode(path: Path, table: LabelTable) -> np.ndarray:
    if _has_colors(path):
        rgb = read_image(path)
        if _differ(rgb):
            return table.from_colors(rgb, path)
    mask = read_mask(path)
    table.encode(mask, path)
    return mask


def _has_colors(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format in ("PNG", "BMP") and image.mode in _COLORS
    except OSError:
        return False  # read_mask says what is wrong


def _differ(pixels: np.ndarray) -> bool:
    """Whether the first three channels of an array (H, W, C) differ anywhere."""
    return any(not np.array_equal(pixels[..., 0], pixels[..., c]) for c in (1, 2))


class _TiffMask:
    """A mask in an open TIFF."""

    note = ""

    def __init__(self, dataset: DatasetReader, path: Path, table: LabelTable) -> None:
        self._dataset, self._path, self._table = dataset, path, table
        self.height, self.width = int(dataset.height), int(dataset.width)
        if dataset.count not in (1, 3, 4):
            raise ImageError(path, f"a mask has one channel, or three of colours, this one {dataset.count}")
        self._colored = dataset.count >= 3 and _differ(self._sample())

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window that begins at ``top``, ``left``, in raw values."""
        bands = [1, 2, 3] if self._colored else [1]
        with _decoding(self._path):
            pixels = self._dataset.read(bands, window=RasterWindow(left, top, width, height))
        low, high = pixels.min(), pixels.max()
        if not np.issubdtype(pixels.dtype, np.integer) or low < 0 or high > 255:
            raise ImageError(
                self._path,
                f"mask values must be whole numbers in 0..255, got {pixels.dtype} from {low} to {high}",
            )
        pixels = pixels.astype(np.uint8)
        if self._colored:
            return self._table.from_colors(np.ascontiguousarray(pixels.transpose(1, 2, 0)), self._path)
        self._table.encode(pixels[0], self._path)
        return pixels[0]

    def _sample(self) -> np.ndarray:
        factor = max(1, -(-max(self.height, self.width) // _SAMPLE_SIDE))
        shape = (3, max(1, self.height // factor), max(1, self.width // factor))
        with _decoding(self._path):
            return self._dataset.read([1, 2, 3], out_shape=shape).transpose(1, 2, 0)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise ImageError(path, f"damaged TIFF ({error.__cause__ or error})", "Restore it") from error
