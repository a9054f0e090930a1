"""Read rasters with GDAL (rasterio), in full or by windows, with any number of bands and any sample type.

Every TIFF is read by `Raster`, and so is every PNG that is not plain 8-bit. Pixels without data are handled
alike, however a file declares them: a no-data value, NaN, an internal or external mask, or an alpha band.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile
from rasterio.rpc import RPC
from rasterio.windows import Window

from s5.errors import ImageError, is_utf8

logger = logging.getLogger(__name__)

# For the whole process, because a filter around every call is not thread-safe. Plain TIFFs and PNGs have no
# map coordinates, which is fine here.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# rasterio logs GDAL's messages before an error at level INFO; the exception, and so our ImageError, has the
# text anyway. GDAL's warnings are still logged.
logging.getLogger("rasterio").setLevel(logging.WARNING)

_SAMPLE_SIDE = 1024  # the stretch of a large image is measured on a subsampled copy of about this size
_CACHE_BYTES = 256 << 20  # holds the strips of a row of windows, so that each is decoded once
_PAGE = re.compile(r"\((\d+)P x (\d+)L")  # size of a page in GDAL's description
_RESTORE = "Restore it from its source"


class Georeference(NamedTuple):
    """Georeferencing of an image.

    Attributes:
        crs: Coordinate reference system; None if the file does not name it.
        transform: Affine transform from columns and rows to map coordinates; None if there are only ground
            control points or RPCs.
        gcps: Ground control points, in `crs`, of an image without a transform.
        rpcs: Rational polynomial coefficients, from longitude, latitude and height to pixels (a camera
            model).
    """

    crs: CRS | None
    transform: Affine | None
    gcps: tuple[GroundControlPoint, ...] = ()
    rpcs: RPC | None = None

    def profile(self) -> dict[str, Any]:
        """Arguments of `rasterio.open` for writing an image of the same size at the same location."""
        values = {"crs": self.crs, "transform": self.transform, "gcps": self.gcps, "rpcs": self.rpcs}
        return {name: value for name, value in values.items() if value}


class Raster:
    """An open raster, read by windows as uint8 RGB.

    The first three bands are taken, of one or two bands the first, repeated, unless `bands` names others.
    Sample types other than uint8 are stretched to 0..255 (complex numbers by their magnitude); the limits are
    measured once, on a reduced read of the whole image, so that neighbouring windows look alike and memory
    stays bounded.

    A pixel has no data where the alpha band or the mask is 0, or where every band that is read holds the
    no-data value or NaN. Such pixels are set to 0, and so are single bands without data.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        declares_no_data: Whether the file has a no-data value, a mask, an alpha band or a transparent colour.
        may_lack_data: Whether it does, or its sample type has NaN.
        note: Remark on how it is read, for the user; may be empty.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        path: str | Path,
        note: str = "",
        bands: Sequence[int] | None = None,
    ) -> None:
        self._dataset, self._path, self.note = dataset, path, note
        self.height, self.width = int(dataset.height), int(dataset.width)
        self._bands = [1, 2, 3] if dataset.count >= 3 else [1]
        if bands is not None:
            require_bands(bands, dataset.count, path)
            self._bands = [*bands]
        dtype = dataset.dtypes[0]
        self._dtype = np.dtype("complex64" if dtype == "complex_int16" else dtype)  # which numpy lacks
        self._colors = _color_map(dataset)
        declared = [dataset.nodatavals[band - 1] for band in self._bands]
        self._nodata = [nodata_value(value, self._dtype) for value in declared]
        with decoding(path):
            self._alpha = self._find_alpha()
            self._has_mask = has_mask(dataset)
            deep = self._dtype != np.uint8
            self.declares_no_data = (
                self._alpha is not None
                or self._has_mask
                or any(value is not None for value in self._nodata)
                or (self._dtype.kind in "fc" and any(value is not None for value in declared))  # NaN
                or (self._colors is not None and bool((self._colors[:, 3] == 0).any()))
            )
            self.may_lack_data = self.declares_no_data or self._dtype.kind in "fc"
            self._limits = self._measure() if deep else None

    def read(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """Read a window as uint8 (height, width, 3) RGB; by default the full image. No-data is 0."""
        return self.read_with_valid(top, left, height, width)[0]

    def read_with_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window, and bool (height, width) where it has data; None if everywhere."""
        window = Window(
            left, top, self.width if width is None else width, self.height if height is None else height
        )
        with decoding(self._path):
            pixels = self._dataset.read(self._bands, window=window)  # (bands, height, width)
            has_data = self._has_data(pixels)
            valid = self._valid(has_data, window=window)
            image = self._as_rgb(pixels, has_data)
        if valid is None or valid.all():
            return image, None
        image[~valid] = 0
        return image, valid

    def _as_rgb(self, pixels: np.ndarray, has_data: np.ndarray | None) -> np.ndarray:
        """Convert the stored bands to uint8 (height, width, 3)."""
        if self._colors is not None:
            return self._colors[:, :3][pixels[0]]
        if self._limits is not None:
            pixels = stretch(_real(pixels), *self._limits)
            if has_data is not None:
                pixels[~has_data] = 0
        if len(pixels) == 1:
            return np.repeat(pixels[0][..., None], 3, axis=2)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def _measure(self) -> tuple[float, float]:
        sample = self._sample(self._bands)
        has_data = self._has_data(sample)
        valid = self._valid(has_data, out_shape=sample.shape[1:])
        counts = np.ones(sample.shape, bool) if has_data is None else has_data
        return stretch_limits(_real(sample), counts if valid is None else counts & valid)

    def _sample(self, bands: list[int]) -> np.ndarray:
        """Bands (bands, h, w) of the full image, subsampled."""
        factor = max(1, math.ceil(max(self.height, self.width) / _SAMPLE_SIDE))
        shape = (len(bands), math.ceil(self.height / factor), math.ceil(self.width / factor))
        return self._dataset.read(bands, out_shape=shape)

    def _has_data(self, pixels: np.ndarray) -> np.ndarray | None:
        """Where each band has data by its values, bool like `pixels`; None if everywhere."""
        if self._dtype.kind not in "fc" and all(value is None for value in self._nodata):
            return None
        has_data = np.isfinite(pixels)
        for band, value in enumerate(self._nodata):
            if value is not None:
                has_data[band] &= pixels[band] != value
        return has_data

    def _valid(
        self,
        has_data: np.ndarray | None,
        window: Window | None = None,
        out_shape: tuple[int, ...] | None = None,
    ) -> np.ndarray | None:
        """Where pixels have data, bool (h, w), from their values, the alpha band and the mask."""
        parts = [] if has_data is None else [has_data.any(0)]
        if self._alpha is not None:
            parts.append(self._dataset.read(self._alpha, window=window, out_shape=out_shape) > 0)
        if self._has_mask:
            parts.append(self._dataset.read_masks(1, window=window, out_shape=out_shape) > 0)
        if self._colors is not None and (self._colors[:, 3] == 0).any():
            index = self._dataset.read(1, window=window, out_shape=out_shape)
            parts.append(self._colors[:, 3][index] > 0)
        return np.logical_and.reduce(parts) if parts else None

    def _find_alpha(self) -> int | None:
        """Find the alpha band, if there is one.

        GDAL labels the fourth band of 8-bit files as alpha unless told otherwise, so near infrared is often
        labelled alpha. A real alpha band has only the lowest and highest values, except for a few
        pixels at edges; other bands rarely do. Conversely, some writers do not label the last band:
        it is alpha if it has only these two values, and the other bands are constant where it is 0.
        """
        kinds = self._dataset.colorinterp
        bands = [band for band, kind in enumerate(kinds, 1) if kind == ColorInterp.alpha]
        unmarked = not bands and len(kinds) in (2, 4) and kinds[-1] == ColorInterp.undefined
        band = len(kinds) if unmarked else next(iter(bands), 0)
        if not band or band in self._bands:
            return None
        sample = self._sample([band])[0]
        top = np.iinfo(self._dtype).max if self._dtype.kind in "iu" else 1
        between = np.count_nonzero((sample > 0) & (sample < top))
        if not unmarked:
            return band if 2 * between < sample.size else None
        zeros, tops = np.count_nonzero(sample == 0), np.count_nonzero(sample == top)
        if not zeros or not tops or zeros + tops < sample.size:
            return None
        empty = self._sample(self._bands)[:, sample == 0]
        return band if (empty == empty[:, :1]).all() else None


def require_bands(bands: Sequence[int], count: int, path: str | Path) -> None:
    """Refuse bands that an image does not have; they are counted from 1.

    Raises:
        ImageError: not one or three bands, or one that does not exist.
    """
    if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
        hint = "Name the red, green and blue band, counted from 1, such as (3, 2, 1), or a single band"
        raise ImageError(path, f"bands {tuple(bands)}: the image has {count}", hint)


@contextmanager
def open_raster(
    source: str | Path | bytes, path: str | Path | None = None, bands: Sequence[int] | None = None
) -> Iterator[Raster]:
    """Open a raster for reading by windows.

    Args:
        source: a TIFF, or the bytes of a PNG.
        path: the file that the bytes are of, for messages.
        bands: red, green and blue band, or a single one, counted from 1; by default the first three.

    Raises:
        ImageError: the file is missing or damaged, or lacks a band.
    """
    path = path or str(source)
    with _open_noted(source, path) as (dataset, note):
        with decoding(path):
            if not isinstance(source, bytes):
                _read_last_pixel(dataset)
            raster = Raster(dataset, path, note, bands)
        yield raster


def size(path: str | Path) -> tuple[int, int]:
    """Height and width of a TIFF.

    Raises:
        ImageError: The file is missing, damaged or cut off.
    """
    with open_dataset(path) as dataset, decoding(path):
        _read_last_pixel(dataset)
        return int(dataset.height), int(dataset.width)


def read_georeference(path: str | Path) -> Georeference | None:
    """Georeferencing of a TIFF, from itself or sidecar files (.tfw, .aux.xml, _RPC.TXT); None without any.

    Raises:
        ImageError: The file is missing or damaged.
    """
    with open_dataset(path) as dataset, decoding(path):
        if not dataset.transform.is_identity:  # rasterio returns the identity if there is no transform
            return Georeference(dataset.crs, dataset.transform, rpcs=dataset.rpcs)
        gcps, crs = dataset.gcps
        if gcps or dataset.rpcs:
            return Georeference(crs or dataset.crs, None, tuple(gcps), dataset.rpcs)
        return None


@contextmanager
def open_dataset(source: str | Path | bytes, path: str | Path | None = None) -> Iterator[DatasetReader]:
    """Open a TIFF (the largest of its pages), or a PNG or BMP from its bytes, as a rasterio dataset.

    Raises:
        ImageError: The file is missing or damaged, or GDAL cannot open a file with its name.
    """
    with _open_noted(source, path or str(source)) as (dataset, _):
        yield dataset


@contextmanager
def _open_noted(source: str | Path | bytes, path: str | Path) -> Iterator[tuple[DatasetReader, str]]:
    """Open a dataset; yields it and a note about its pages."""
    note = ""
    # Sidecar files (.aux.xml, .msk, .tfw) are tried by name: GDAL would otherwise list the folder, which may
    # have a million files, for every image.
    options = {"GDAL_CACHEMAX": _CACHE_BYTES, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
    with rasterio.Env(**options), ExitStack() as opened:
        with decoding(path):  # not around the caller's own errors
            if isinstance(source, bytes):
                driver = "BMP" if source.startswith(b"BM") else "PNG"
                dataset = opened.enter_context(opened.enter_context(MemoryFile(source)).open(driver=driver))
            else:
                _require_utf8(source)
                dataset = opened.enter_context(rasterio.open(source, driver="GTiff"))
                page, note = _largest_page(dataset)
                if page is not None:
                    dataset = opened.enter_context(rasterio.open(page, driver="GTiff"))
        if note:
            _warn_once(f"{path}: {note}")
        yield dataset, note


@contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Convert any exception of a decoder to an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        hint = "Use fewer workers, or divide the image"
        raise ImageError(path, "there is not enough memory to decode it", hint) from error
    except Exception as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise ImageError(path, f"damaged or unsupported ({reason})", _RESTORE) from error


def _read_last_pixel(dataset: DatasetReader) -> None:
    """Detect early that a TIFF is truncated, or that a damaged header claims billions of rows."""
    dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))


def _require_utf8(path: str | Path) -> None:
    if not is_utf8(path):
        hint = "Rename the file (convmv -r -f gbk -t utf8 --notest FOLDER, with the encoding that it has)"
        raise ImageError(path, "TIFFs whose path is not UTF-8 cannot be opened by GDAL", hint)


def _largest_page(dataset: DatasetReader) -> tuple[str | None, str]:
    """GDAL's name of the page with the most pixels (the first of equal ones), and a note about it.

    The name is None for the page that is already open; the note is empty for a single page.
    """
    pages = dataset.subdatasets
    if len(pages) < 2:
        return None, ""
    about = dataset.tags(ns="SUBDATASETS")
    sizes = []
    for number in range(1, len(pages) + 1):
        found = _PAGE.search(about.get(f"SUBDATASET_{number}_DESC", ""))
        sizes.append((int(found[2]), int(found[1])) if found else (0, 0))
    best = max(range(len(pages)), key=lambda i: sizes[i][0] * sizes[i][1])
    height, width = sizes[best]
    return pages[best] if best else None, (
        f"of {len(pages)} pages, only the largest is read: page {best + 1}, {height}x{width} (height x "
        "width). If the others are bands or more images, save them as bands of one page or as separate files"
    )


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _color_map(dataset: DatasetReader) -> np.ndarray | None:
    """RGBA uint8 (256, 4) of the palette of an 8-bit palette image, else None."""
    if dataset.count != 1 or dataset.colorinterp[0] != ColorInterp.palette or dataset.dtypes[0] != "uint8":
        return None
    colors = np.zeros((256, 4), np.uint8)
    colors[:, 3] = 255
    for value, rgba in dataset.colormap(1).items():
        colors[value] = rgba
    return colors


def has_mask(dataset: DatasetReader) -> bool:
    """Whether the file has an internal or external mask for all bands."""
    flags = dataset.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and not {MaskFlags.alpha, MaskFlags.nodata} & set(flags)


def nodata_value(value: float | None, dtype: np.dtype) -> np.generic | None:
    """The no-data value in the type of the pixels; None if there is none, or none that a pixel can have.

    GDAL stores it as float64, which does not compare equal to most float32 values.
    """
    if value is None or math.isnan(value):  # NaN is no-data anyway
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return dtype.type(int(value)) if value.is_integer() and limits.min <= value <= limits.max else None
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _real(pixels: np.ndarray) -> np.ndarray:
    return np.abs(pixels) if np.iscomplexobj(pixels) else pixels


PERCENTILES = (0.5, 99.5)
"""Percentiles that are mapped to 0 and 255."""


def stretch_limits(pixels: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """The values mapped to 0 and 255: `PERCENTILES` of the `valid` pixels."""
    values = pixels[valid] if valid is not None else pixels.ravel()
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def stretch(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` linearly to 0..255 (uint8); values outside are clipped, NaN becomes 0."""
    scale = 255.0 / (high - low) if high > low else 0.0
    # float32 represents these types exactly, but not integers of 32 bits and more.
    exact = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    wide: type[np.floating] = np.float32 if exact else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are clipped, NaN becomes 0
        scaled = (pixels.astype(wide) - wide(low)) * wide(scale)
    return np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)
