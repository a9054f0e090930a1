"""Read rasters with GDAL (rasterio), in full or by windows, with any number of bands and any sample type.

Every TIFF is read by `Raster`, and so is every PNG that is not plain 8-bit. Pixels without data are treated
the same however a file declares them: a no-data value, NaN, an internal or external mask, or an alpha band.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from s5.data import references
from s5.data.gdal_files import OPTIONS, decoding, enter_dataset, open_noted, read_last_pixel
from s5.errors import ImageError

_SAMPLE_SIDE = 1024  # the stretch of a large image is measured on a subsampled copy of about this size


class Measured(NamedTuple):
    """What is learned from all pixels of an image: its alpha band, and the limits of the stretch, if any."""

    alpha: int | None
    limits: tuple[float, float] | None


class Raster:
    """An open raster, read by windows as uint8 RGB.

    Unless `bands` names others, the first three bands are read; of one or two bands, the first is repeated.
    Sample types other than uint8 are stretched to 0..255 (complex numbers by their magnitude); the limits are
    measured once, on a subsampled copy of the image, so that neighbouring windows look alike and memory
    stays bounded.

    A pixel has no data where the alpha band or the mask is 0, or where every band that is read holds the
    no-data value or NaN. Such pixels are set to 0, and so are single bands without data.

    Args:
        dataset: The open file.
        path: The file, for messages.
        note: See below.
        bands: Red, green and blue band, or a single one, counted from 1.
        area: The part that is the image; the stretch is that of the whole file.
        measured: What an earlier `Raster` of this file and these bands measured.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        measured: What was measured.
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
        area: references.Window | None = None,
        measured: Measured | None = None,
    ) -> None:
        self._dataset, self._path, self.note = dataset, path, note
        self._area = area or references.Window(0, 0, int(dataset.height), int(dataset.width))
        self._area.require_inside(dataset.height, dataset.width, path)
        self.height, self.width = self._area.height, self._area.width
        self._bands = [1, 2, 3] if dataset.count >= 3 else [1]
        if bands is not None:
            require_bands(bands, dataset.count, path)
            self._bands = [*bands]
        dtype = dataset.dtypes[0]
        self._dtype = np.dtype("complex64" if dtype == "complex_int16" else dtype)  # which numpy lacks
        self._colors = _color_map(dataset)
        bits = int(dataset.tags(self._bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        self._brightest = (1 << bits) - 1 if self._dtype == np.uint8 and self._colors is None else 255
        declared = [dataset.nodatavals[band - 1] for band in self._bands]
        self._nodata = [nodata_value(value, self._dtype) for value in declared]
        with decoding(path):
            self._alpha = measured.alpha if measured else self._find_alpha()
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
            self._limits = (measured.limits if measured else self._measure()) if deep else None
            self.measured = Measured(self._alpha, self._limits)

    def read(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """Read a window as uint8 (height, width, 3) RGB; by default the full image. No-data is 0."""
        return self.read_with_valid(top, left, height, width)[0]

    def read_with_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window, and bool (height, width) where it has data; None if everywhere."""
        height, width = self.height if height is None else height, self.width if width is None else width
        window = Window(left + self._area.left, top + self._area.top, width, height)
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
        elif self._brightest < 255:  # of fewer than 8 bits, which GDAL does not scale
            pixels = np.rint(pixels * (255 / self._brightest)).astype(np.uint8)
        if has_data is not None and (self._limits is not None or self._brightest < 255):
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
        height, width = self._dataset.height, self._dataset.width
        factor = max(1, math.ceil(max(height, width) / _SAMPLE_SIDE))
        shape = (len(bands), math.ceil(height / factor), math.ceil(width / factor))
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
        ImageError: There are not one or three bands, or one does not exist.
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
        source: A TIFF, a reference to one or to a part of one, or the bytes of a PNG.
        path: The file, for messages.
        bands: Red, green and blue band, or a single one, counted from 1; by default the first three.

    Raises:
        ImageError: The file is missing or damaged, or lacks a band.
    """
    path = path or str(source)
    reference = None if isinstance(source, bytes) else references.find(source)
    area = None if reference is None else reference.window
    with open_noted(source, path) as (dataset, note):
        with decoding(path):
            if not isinstance(source, bytes) and area is None:
                read_last_pixel(dataset)
            raster = Raster(dataset, path, note, bands, area)
        yield raster


class _Open(NamedTuple):
    raster: Raster
    closing: ExitStack


OPEN: references.Kept[_Open] = references.Kept(32, lambda file: file.closing.close())
"""TIFFs whose windows were read last."""

_MEASURED: dict[object, Measured] = {}
_MOST_MEASURED = 1 << 16


def is_open(reference: references.Reference) -> bool:
    """Whether the TIFF with a window is kept open by `read_window`."""
    return OPEN.get(_key(reference)) is not None


def read_window(reference: references.Reference, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a window of a TIFF, which is kept open for the next one; see `Raster.read_with_valid`.

    A compressed member of an archive is not kept open, because all of it would stay in memory.

    Args:
        reference: The window.
        path: The reference, for messages.

    Raises:
        ImageError: It cannot be read, or the window is not inside it.
    """
    if reference.window is None:
        raise ValueError(f"{reference}: not a window")
    with rasterio.Env(**OPTIONS), ExitStack() as opened:
        kept = OPEN.get(_key(reference))
        raster = kept.raster if kept else _open_to_keep(reference, opened)
        reference.window.require_inside(raster.height, raster.width, path)
        try:
            return raster.read_with_valid(*reference.window)
        except ImageError as error:
            raise ImageError(path, error.reason, error.hint) from error


def _open_to_keep(reference: references.Reference, opened: ExitStack) -> Raster:
    path, key = str(reference._replace(window=None)), _key(reference)
    source = references.for_gdal(path)
    dataset, note = enter_dataset(source, path, opened)
    with decoding(path):
        raster = Raster(dataset, path, note, measured=_MEASURED.get(key))
    if len(_MEASURED) >= _MOST_MEASURED:
        _MEASURED.clear()
    _MEASURED[key] = raster.measured
    if not isinstance(source, bytes):
        OPEN.put(key, _Open(raster, opened.pop_all()))
    return raster


def _key(reference: references.Reference) -> object:
    return reference._replace(window=None), references.state_of(reference.file)


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
