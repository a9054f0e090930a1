"""A predicted mask: in memory, drawn, and written as index mask, colours or overlay."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from s5.data.image_io import write_image
from s5.data.labels import IGNORE, LabelTable
from s5.data.oriented.drawing import draw_legend
from s5.data.prepare.patches import Readable
from s5.data.rasters import Georeference
from s5.prediction.images import LARGEST, reduced
from s5.prediction.predictor import Result
from s5.prediction.writers import BandWriter, PngWriter, TiffWriter

FORMATS = {"index": (".png", ".tif"), "color": (".png", ".tif"), "overlay": (".png", ".tif")}
ALPHA = 0.5  # weight of the colours in overlays
BAND_PIXELS = 1 << 22  # written at a time


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult(Result):
    """The classes of the pixels of an image.

    Attributes:
        mask: Train ids uint8 (H, W), indices into `classes`; 255 where the image has no data.
        table: Values and colours of the classes.
        probabilities: Float32 (K, H, W) of each class, 0 where windows wholly without data were skipped; None
            if they were not asked for.
        declares_no_data: Whether the image's file has a no-data value, mask or alpha band.
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
            ValueError: There are no probabilities.
        """
        if self.probabilities is None:
            raise ValueError("no probabilities were kept: predict with probabilities=True")
        return self.probabilities.max(0)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels with data of each class, 0 to 1."""
        counts = np.bincount(self.mask.ravel(), minlength=256)[: len(self.classes)]
        return dict(zip(self.classes, (counts / max(1, counts.sum())).tolist(), strict=True))

    def __repr__(self) -> str:
        """Task, size and the shares of the classes."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items() if share)
        where = "" if self.georeference is None else ", georeferenced"
        return f"SegmentationResult({self.task}: {self.height}x{self.width}{where}; {shares or 'no data'})"

    def draw(self, largest: int = LARGEST) -> np.ndarray:
        """The overlay with a legend below it, see :meth:`Result.draw`."""
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
                raise ValueError(f"{path}: lossy formats change the values of a mask; write a .png or .tif")
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
        """A whole picture."""
        with self.picture.open() as pixels:
            return paint(kind, self.mask, self.table, read_whole(pixels), self.alpha)


def read_whole(pixels: Readable) -> np.ndarray:
    """The image as uint8 (H, W, 3)."""
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
    """What writes a picture of one format.

    Args:
        path: The file.
        is_tiff: TIFF or PNG.
        kind: Of :data:`FORMATS`.
        table: Of the task.
        size: Height and width.
        georeference: For a TIFF.
        declares_no_data: Tag an index mask with the no-data value in any case.
    """
    if not is_tiff:
        return PngWriter(path, *size)
    if kind != "index":
        return TiffWriter(path, *size, 3, georeference)
    return TiffWriter(path, *size, 1, georeference, table.no_data, declares_no_data)


def paint(
    kind: str, ids: np.ndarray, table: LabelTable, photo: np.ndarray | None, alpha: float
) -> np.ndarray:
    """Pixels of a format.

    Args:
        kind: Of :data:`FORMATS`.
        ids: Train ids uint8 (h, w), 255 without data.
        table: Of the task.
        photo: The image, uint8 (h, w, 3); for overlays.
        alpha: Weight of the colours in overlays.

    Returns:
        Raw values uint8 (h, w) for `index`, else RGB (h, w, 3).
    """
    if kind == "index":
        raw = np.full(256, table.no_data, np.uint8)
        raw[: table.num_classes] = table.values
        return raw[ids]
    colors = table.colorize(ids)
    if photo is None or kind == "color":
        return colors
    overlay = cv2.addWeighted(np.ascontiguousarray(photo), 1 - alpha, colors, alpha, 0)
    if table.background is not None:  # its colour, often black, would only darken the picture
        overlay = np.where((ids == table.background)[..., None], photo, overlay)
    return overlay
