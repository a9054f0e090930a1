"""Segmentation results: in memory, drawn, and written as index mask, colours or overlay."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import cv2
import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from s5.data.gdal_files import Georeference
from s5.data.image_io import write_image, write_mask
from s5.data.label_table import IGNORE, LabelTable
from s5.data.oriented.drawing import draw_legend
from s5.data.prepare.patches import Readable
from s5.prediction.images import LARGEST, reduced
from s5.prediction.predictor import Result

_MASK_ROWS = 256  # rows of a mask that are filled at once
FORMATS = {"index": (".png", ".tif"), "color": (".png", ".tif"), "overlay": (".png", ".tif")}
ALPHA = 0.5  # weight of the colours in overlays
BAND_PIXELS = 1 << 22  # maximum number of pixels written at once


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
        """Close the file and rename it to its final path.

        Raises:
            OSError: The file is incomplete; it is removed.
        """
        self._file.close()
        try:
            self._check()
        except RasterioIOError:
            self._temporary.unlink()
            message = "incomplete after writing; is the disk full, or a quota used up?"
            raise OSError(errno.EIO, message, str(self._path)) from None
        self._temporary.replace(self._path)

    def _check(self) -> None:
        """Read all pixels back: closing a file does not report what could not be written.

        Raises:
            RasterioIOError: Something is missing.
        """
        with rasterio.open(self._temporary) as file:
            if self._has_mask and MaskFlags.per_dataset not in file.mask_flag_enums[0]:
                raise RasterioIOError("the mask is missing")
            for (row, column), window in file.block_windows(1):
                if file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1) is None:
                    raise RasterioIOError(f"block {row}, {column} is missing")
                file.read(1, window=window)  # and with it the other bands of the block
                if self._has_mask:
                    file.read_masks(1, window=window)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult(Result):
    """The predicted classes of an image's pixels.

    Attributes:
        mask: Train ids uint8 (H, W), indices into `classes`; 255 where the image has no data.
        table: Label table: values and colours of the classes.
        probabilities: Float32 (K, H, W), 0 where windows without any data were skipped; None if they were not
            requested.
        declares_no_data: Whether the image file has a no-data value, mask or alpha band.
        alpha: Weight of the colours in overlays, 0 to 1.
    """

    suffixes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys((".png", ".tif", ".tiff"), "index"),
        **dict.fromkeys((".jpg", ".jpeg", ".webp"), "overlay"),
    }

    mask: np.ndarray
    table: LabelTable
    probabilities: np.ndarray | None = None
    declares_no_data: bool = False
    alpha: float = ALPHA

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float32 (H, W).

        Raises:
            ValueError: The result has no probabilities.
        """
        if self.probabilities is None:
            raise ValueError("the result has no probabilities: predict with probabilities=True")
        return self.probabilities.max(0)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class among the pixels with data, 0 to 1."""
        counts = np.bincount(self.mask.ravel(), minlength=256)[: len(self.classes)]
        return dict(zip(self.classes, (counts / max(1, counts.sum())).tolist(), strict=True))

    def __repr__(self) -> str:
        """Show task, size and class shares."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items() if share)
        geo = "" if self.georeference is None else ", georeferenced"
        return f"SegmentationResult({self.task}: {self.height}x{self.width}{geo}; {shares or 'no data'})"

    def draw(self, largest: int = LARGEST) -> np.ndarray:
        """Draw the overlay with a legend below, see :meth:`Result.draw`."""
        with self.picture.open() as pixels:
            photo, factor = reduced(pixels, largest)
        height, width = photo.shape[:2]
        ids = self.mask[::factor, ::factor][:height, :width]
        drawn = paint("overlay", ids, self.table, photo, self.alpha)
        entries = [
            (f"{name} {share:.0%}", color)
            for (name, share), color in zip(self.shares.items(), self.palette, strict=True)
            if share
        ]
        size = max(1, max(height, width) // 1000)
        return np.concatenate([drawn, draw_legend(entries, width, size)]) if entries else drawn

    def _write(self, path: Path, kind: str) -> None:
        if kind not in FORMATS:
            raise ValueError(f"format {kind!r}: must be one of {', '.join(FORMATS)}")
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            if kind == "index":
                raise ValueError(f"{path}: lossy formats would change the mask values; use .png or .tif")
            write_image(path, self._painted(kind))
            return
        is_tiff = path.suffix.lower() != ".png"
        size = self.height, self.width
        writer = make_writer(path, is_tiff, kind, self.table, size, self.georeference, self.declares_no_data)
        try:
            self._write_bands(writer, kind)
        except BaseException:
            writer.discard()
            raise
        writer.finish()

    def _write_bands(self, writer: BandWriter, kind: str) -> None:
        rows = max(1, BAND_PIXELS // self.width)
        with self.picture.open() as pixels:
            for top in range(0, self.height, rows):
                ids = self.mask[top : top + rows]
                photo = pixels.read(top, 0, *ids.shape) if kind == "overlay" else None
                valid = None if (ids != IGNORE).all() else ids != IGNORE
                writer.write(top, 0, paint(kind, ids, self.table, photo, self.alpha), valid)

    def _painted(self, kind: str) -> np.ndarray:
        """Paint the full picture."""
        with self.picture.open() as pixels:
            return paint(kind, self.mask, self.table, read_whole(pixels), self.alpha)


def read_whole(pixels: Readable) -> np.ndarray:
    """Read the full image as uint8 (H, W, 3)."""
    return pixels.read(0, 0, pixels.height, pixels.width)


def make_writer(
    path: Path,
    is_tiff: bool,
    kind: str,
    table: LabelTable,
    size: tuple[int, int],
    georeference: Georeference | None,
    declares_no_data: bool,
) -> BandWriter:
    """Create the writer of a result file.

    Args:
        path: Output file.
        is_tiff: Whether to write TIFF instead of PNG.
        kind: One of :data:`FORMATS`.
        table: Label table of the task.
        size: Height and width.
        georeference: Georeference of a TIFF.
        declares_no_data: Always tag a TIFF index mask with the no-data value.
    """
    if not is_tiff:
        return PngWriter(path, *size)
    if kind != "index":
        return TiffWriter(path, *size, 3, georeference)
    return TiffWriter(path, *size, 1, georeference, table.no_data, declares_no_data)


def paint(
    kind: str, ids: np.ndarray, table: LabelTable, photo: np.ndarray | None, alpha: float
) -> np.ndarray:
    """Render train ids as pixels of a format.

    Args:
        kind: One of :data:`FORMATS`.
        ids: Train ids uint8 (h, w), 255 = no data.
        table: Label table of the task.
        photo: The image, uint8 (h, w, 3), for overlays.
        alpha: Weight of the colours in overlays, 0 to 1.

    Returns:
        Raw values uint8 (h, w) for `index`, otherwise RGB uint8 (h, w, 3).
    """
    if kind == "index":
        raw = np.full(256, table.no_data, np.uint8)
        raw[: table.num_classes] = table.values
        return raw[ids]
    colors = table.colorize(ids)
    if photo is None or kind == "color":
        return colors
    overlay = cv2.addWeighted(np.ascontiguousarray(photo), 1 - alpha, colors, alpha, 0)
    if table.background is not None:  # its colour is often black and would only darken the picture
        overlay = np.where((ids == table.background)[..., None], photo, overlay)
    return overlay
