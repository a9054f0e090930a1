"""Read TIFF and GeoTIFF, whole or by windows, with any number of bands (through rasterio)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s5.data.errors import ImageError
from s5.data.intensity import stretch, stretch_limits

if TYPE_CHECKING:
    from rasterio import Affine
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader

_SAMPLE_SIDE = 1024  # the stretch of a large image is measured on a copy reduced to about this side
_CACHE_BYTES = 256 << 20  # holds the strips of a row of windows, so that each is decoded once


class Georeference(NamedTuple):
    """Where on the earth an image is.

    Attributes:
        crs: reference system of the map coordinates; None where the file does not name it.
        transform: from columns and rows to map coordinates.
    """

    crs: CRS | None
    transform: Affine


class Raster:
    """An open TIFF, read by windows as uint8 RGB.

    Its stretch (for other depths than 8 bit) is measured once, on a reduced read of the whole image, so that
    neighbouring windows look alike and memory stays bounded.

    Attributes:
        height: rows of the whole image.
        width: columns of the whole image.
    """

    def __init__(self, dataset: DatasetReader, path: str | Path) -> None:
        self._dataset, self._path = dataset, path
        self.height, self.width = int(dataset.height), int(dataset.width)
        self._colors = _color_map(dataset)
        # Two bands are grey and alpha.
        self._bands = [1, 2, 3] if dataset.count >= 3 else [1]
        self._limits = None if dataset.dtypes[0] == "uint8" else self._measure()

    def read(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """The window as uint8 (height, width, 3) RGB; the whole image by default."""
        from rasterio.windows import Window

        window = Window(
            left, top, self.width if width is None else width, self.height if height is None else height
        )
        with _decoding(self._path):
            bands = self._dataset.read(self._bands, window=window)
        pixels = np.ascontiguousarray(bands.transpose(1, 2, 0))
        if self._colors is not None and pixels.dtype == np.uint8:
            return self._colors[pixels[..., 0]]
        if self._limits is not None:
            valid = self._valid(pixels)
            pixels = np.where(valid, stretch(pixels, *self._limits), np.uint8(0))
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def _measure(self) -> tuple[float, float]:
        factor = max(1, math.ceil(max(self.height, self.width) / _SAMPLE_SIDE))
        shape = (len(self._bands), math.ceil(self.height / factor), math.ceil(self.width / factor))
        with _decoding(self._path):
            sample = self._dataset.read(self._bands, out_shape=shape)
        return stretch_limits(sample, self._valid(sample))

    def _valid(self, pixels: np.ndarray) -> np.ndarray:
        valid = np.isfinite(pixels)
        nodata = self._dataset.nodata
        return valid if nodata is None or math.isnan(nodata) else valid & (pixels != nodata)


@contextmanager
def open_raster(path: str | Path) -> Iterator[Raster]:
    """Open a TIFF for reading by windows.

    Raises:
        ImageError: rasterio is not installed, or the file is missing or damaged.
    """
    with _open(path) as dataset:
        yield Raster(dataset, path)


def read_rgb(path: str | Path) -> np.ndarray:
    """The whole TIFF as uint8 (H, W, 3) RGB."""
    with open_raster(path) as raster:
        return raster.read()


def read_raw(path: str | Path) -> np.ndarray:
    """The whole TIFF as stored: (H, W) for one band, else (H, W, bands)."""
    with _open(path) as dataset, _decoding(path):
        bands = dataset.read()
    return bands[0] if len(bands) == 1 else np.ascontiguousarray(bands.transpose(1, 2, 0))


def size(path: str | Path) -> tuple[int, int]:
    """Height and width from the header."""
    with _open(path) as dataset:
        return int(dataset.height), int(dataset.width)


def read_georeference(path: str | Path) -> Georeference | None:
    """Where a TIFF is, from itself or the files beside it (.tfw, .aux.xml); None without map coordinates.

    Raises:
        ImageError: rasterio is not installed, or the file is missing or damaged.
    """
    with _open(path, beside=True) as dataset:
        if dataset.transform.is_identity:  # rasterio's word for none
            return None
        return Georeference(dataset.crs, dataset.transform)


def require_rasterio(path: str | Path) -> ModuleType:
    """Import rasterio.

    Raises:
        ImageError: it is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ImageError(path, "reading TIFF needs rasterio", "pip install rasterio") from error
    return rasterio


@contextmanager
def _open(path: str | Path, beside: bool = False) -> Iterator[DatasetReader]:
    """Open a TIFF, with the files ``beside`` it or without."""
    rasterio = require_rasterio(path)
    # Files beside it are tried by their names at most: pools have a million files in a folder, which GDAL
    # would list for every image.
    listing = "TRUE" if beside else "EMPTY_DIR"
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN=listing):
        with warnings.catch_warnings(), _decoding(path):
            # Plain TIFFs carry no map coordinates; that is no concern here.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            dataset = rasterio.open(path, driver="GTiff")
        with dataset:
            yield dataset


@contextmanager
def _decoding(path: str | Path) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, OSError) as error:
        reason = str(error.__cause__ or error)
        raise ImageError(path, f"damaged TIFF ({reason})", "Restore it from its source") from error


def _color_map(dataset: DatasetReader) -> np.ndarray | None:
    """uint8 (256, 3) for a palette image, else None."""
    from rasterio.enums import ColorInterp

    if dataset.count != 1 or dataset.colorinterp[0] != ColorInterp.palette:
        return None
    colors = np.zeros((256, 3), np.uint8)
    for value, rgba in dataset.colormap(1).items():
        colors[value] = rgba[:3]
    return colors
