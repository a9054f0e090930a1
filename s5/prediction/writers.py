"""Write images band by band, atomically."""

from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from rasterio.windows import Window

from s5.data.image_io import write_image, write_mask
from s5.data.rasters import Georeference

_MASK_ROWS = 256  # rows of a mask that are filled at once


class BandWriter(Protocol):
    """Writer of bands that together cover an image."""

    def write(self, top: int, left: int, band: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Write a band.

        Args:
            top: First row.
            left: First column.
            band: Uint8 (rows, columns) or (rows, columns, 3) RGB.
            valid: Bool (rows, columns), false where the image has no data; None if it has data everywhere.
        """
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...

    def discard(self) -> None:
        """Remove what was written."""
        ...


class PngWriter:
    """Writer of a PNG, encoded at the end: greyscale with unchanged values, or RGB.

    RGB is transparent where there is no data; without missing data it has no alpha channel.

    Args:
        path: The file; missing folders are created.
        height: Rows of the image.
        width: Columns of the image.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._path = path
        self._size = (height, width)
        self._picture: np.ndarray | None = None
        self._valid: np.ndarray | None = None

    def write(self, top: int, left: int, band: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Write a band."""
        if self._picture is None:
            self._picture = np.empty((*self._size, *band.shape[2:]), np.uint8)
        window = np.s_[top : top + band.shape[0], left : left + band.shape[1]]
        self._picture[window] = band
        if valid is not None and band.ndim == 3:
            if self._valid is None:
                self._valid = np.ones(self._size, bool)
            self._valid[window] = valid

    def finish(self) -> None:
        """Encode and write the file."""
        assert self._picture is not None
        if self._picture.ndim == 2:
            write_mask(self._path, self._picture)
        else:
            write_image(self._path, self._picture, valid=self._valid)
        self.discard()

    def discard(self) -> None:
        """Drop the pixels."""
        self._picture = self._valid = None


class TiffWriter:
    """Writer of a compressed TIFF, of which only some rows are in memory.

    For missing data, RGB gets an internal mask, and a single channel declares its no-data value.

    Args:
        path: The file; missing folders are created.
        height: Rows of the image.
        width: Columns of the image.
        channels: 1, or 3 for RGB.
        georeference: Georeferencing of the image, if known.
        nodata: Value of a single channel where there is no data; None for RGB.
        declared: Always declare the no-data value, even if no pixel lacks data.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        channels: int,
        georeference: Georeference | None,
        nodata: int | None = None,
        declared: bool = False,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._nodata, self._has_mask = nodata, False
        self._file = rasterio.open(
            self._temporary,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=channels,
            dtype="uint8",
            compress="deflate",
            tiled=True,
            bigtiff="if_safer",
            photometric="rgb" if channels == 3 else "minisblack",
            interleave="pixel",
            nodata=nodata if declared else None,
            **({} if georeference is None else georeference.profile()),
        )

    def write(self, top: int, left: int, band: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Write a band."""
        planes = band[None] if band.ndim == 2 else band.transpose(2, 0, 1)
        self._file.write(planes, window=Window(left, top, band.shape[1], band.shape[0]))
        if valid is None:
            return
        if band.ndim == 3:
            self._mask(top, left, valid)
        elif self._file.nodata is None:
            self._file.nodata = self._nodata

    def _mask(self, top: int, left: int, valid: np.ndarray) -> None:
        """Mark pixels without data; the mask is created on the first call."""
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            if not self._has_mask:
                for row in range(0, self._file.height, _MASK_ROWS):  # a new mask starts as all invalid
                    rows = min(_MASK_ROWS, self._file.height - row)
                    full = np.full((rows, self._file.width), 255, np.uint8)
                    self._file.write_mask(full, window=Window(0, row, self._file.width, rows))
                self._has_mask = True
            self._file.write_mask(valid, window=Window(left, top, valid.shape[1], valid.shape[0]))

    def finish(self) -> None:
        """Close the file and rename it to its final path."""
        self._file.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
