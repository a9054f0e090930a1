"""Write pictures a band after the other; they appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from rasterio.windows import Window

from s5.data.geotiff import Georeference
from s5.data.image_io import write_image, write_mask


class BandWriter(Protocol):
    """Takes the bands of one picture, which together cover it."""

    def write(self, top: int, left: int, band: np.ndarray) -> None:
        """Take the pixels from ``top`` and ``left`` on, uint8 (rows, columns) or (rows, columns, 3) RGB."""
        ...

    def finish(self) -> None:
        """Put the whole picture into its place."""
        ...

    def discard(self) -> None:
        """Leave nothing behind."""
        ...


class PngWriter:
    """A PNG, which is encoded at the end: grey without change of values, or RGB.

    Args:
        path: where to; missing folders are made.
        height: rows of the picture.
        width: columns of the picture.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._path = path
        self._size = (height, width)
        self._picture: np.ndarray | None = None

    def write(self, top: int, left: int, band: np.ndarray) -> None:
        """Take some pixels."""
        if self._picture is None:
            self._picture = np.empty((*self._size, *band.shape[2:]), np.uint8)
        self._picture[top : top + band.shape[0], left : left + band.shape[1]] = band

    def finish(self) -> None:
        """Encode and write."""
        assert self._picture is not None
        (write_mask if self._picture.ndim == 2 else write_image)(self._path, self._picture)
        self._picture = None

    def discard(self) -> None:
        """Forget the pixels."""
        self._picture = None


class TiffWriter:
    """A compressed TIFF, of which only some rows are in memory.

    Args:
        path: where to; missing folders are made.
        height: rows of the picture.
        width: columns of the picture.
        channels: 1, or 3 for RGB.
        place: where on the earth it is, if that is known.
    """

    def __init__(
        self, path: Path, height: int, width: int, channels: int, place: Georeference | None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
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
            **({} if place is None else place._asdict()),
        )

    def write(self, top: int, left: int, band: np.ndarray) -> None:
        """Write some pixels."""
        planes = band[None] if band.ndim == 2 else band.transpose(2, 0, 1)
        self._file.write(planes, window=Window(left, top, band.shape[1], band.shape[0]))

    def finish(self) -> None:
        """Close the file and rename it."""
        self._file.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
