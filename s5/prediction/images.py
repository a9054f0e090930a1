"""Input images of the API: arrays, PIL images and files, read like those of the commands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from s5.data.gdal_files import Georeference, read_georeference
from s5.data.image_io import read_image_with_valid
from s5.data.prepare.patches import Decoded, Readable, is_tiff
from s5.data.rasters import open_raster, require_bands, stretch, stretch_limits

ImageLike = np.ndarray | Image.Image | str | Path
"""An image to predict: see :meth:`s5.prediction.predictor.Predictor.predict`."""

LARGEST = 4096  # maximum longer side of a drawing in pixels; larger images are reduced by an integer factor
BAND_BYTES = 64 << 20  # maximum size of a band when a large image is reduced


@dataclass(frozen=True)
class Picture:
    """An image to predict, opened on demand.

    Attributes:
        source: Array, PIL image or path.
        bands: 1-based numbers of the red, green and blue bands; None for the first three.
    """

    source: ImageLike
    bands: tuple[int, ...] | None = None

    @contextmanager
    def open(self) -> Iterator[Readable]:
        """Open the pixels; those of a TIFF are read by windows.

        Raises:
            ImageError: The image cannot be read, or lacks a band.
            TypeError: The source is not an image.
        """
        if isinstance(self.source, Image.Image):
            array, valid = _pil_pixels(self.source)
            yield _decoded(_choose(array, self.bands, "image"), valid)
        elif isinstance(self.source, np.ndarray):
            yield _decode_array(self.source, self.bands)
        elif isinstance(self.source, str | Path):
            with _open_file(Path(self.source), self.bands) as pixels:
                yield pixels
        else:
            raise TypeError(
                f"{type(self.source).__name__} is not an image: give a NumPy array (H, W, 3), a PIL image, "
                f"a path, or a list of these"
            )

    def read_georeference(self) -> Georeference | None:
        """Read the georeference of a GeoTIFF; None for everything else.

        Raises:
            ImageError: The file is damaged.
        """
        if not isinstance(self.source, str | Path) or not is_tiff(Path(self.source)):
            return None
        return read_georeference(self.source)


@contextmanager
def _open_file(path: Path, bands: Sequence[int] | None) -> Iterator[Readable]:
    path = path.expanduser()
    if is_tiff(path):
        with open_raster(path, bands=bands) as raster:
            yield raster
    else:
        image, valid = read_image_with_valid(path)
        yield Decoded(_choose(image, bands, path), valid=valid)


def _choose(array: np.ndarray, bands: Sequence[int] | None, path: str | Path) -> np.ndarray:
    """Select RGB (H, W, 3) from an image (H, W, C); a single band is repeated."""
    if bands is None:
        bands = (1, 2, 3) if array.shape[2] >= 3 else (1,)
    require_bands(bands, array.shape[2], path)
    if tuple(bands) == (1, 2, 3):
        return array[..., :3]
    return array[..., [band - 1 for band in bands] * (1 if len(bands) == 3 else 3)]


def _decode_array(array: np.ndarray, bands: Sequence[int] | None) -> Decoded:
    """Convert an array (H, W) or (H, W, C): dtypes other than uint8 are stretched, NaN means no data."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size or array.dtype.kind not in "uif":
        raise TypeError(
            f"array of shape {array.shape} and type {array.dtype}: expected numbers (H, W, C), such as uint8 "
            f"(H, W, 3) RGB; give several images as a list"
        )
    if array.shape[2] > min(array.shape[:2]) and array.shape[0] in (1, 3, 4):
        raise TypeError(f"array of shape {array.shape} has its channels first: transpose it to (H, W, C)")
    pixels = _choose(array, bands, "array")
    if pixels.dtype == np.uint8:
        return _decoded(pixels)
    known = np.isfinite(pixels)
    stretched = stretch(pixels, *stretch_limits(pixels, known))
    stretched[~known] = 0
    valid = known.any(2)
    return _decoded(stretched, None if valid.all() else valid)


def _decoded(pixels: np.ndarray, valid: np.ndarray | None = None) -> Decoded:
    """Make pixels usable by PyTorch, which rejects reversed views and warns about read-only arrays."""
    return Decoded(np.require(pixels, requirements=["C", "W"]), valid=valid)


def _pil_pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert to RGB and a data mask: transparent pixels have no data and become 0, as in files."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        decoded = _decode_array(np.asarray(image), None)
        return decoded.read_with_valid(0, 0, decoded.height, decoded.width)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None
    rgba = np.array(image.convert("RGBA"))
    valid = rgba[..., 3] > 0
    rgba[~valid] = 0
    return rgba[..., :3], None if valid.all() else valid


def reduced(pixels: Readable, largest: int = LARGEST) -> tuple[np.ndarray, int]:
    """Reduce an image by the smallest integer factor that makes its longer side fit.

    The image is read in bands, so that a large one is never held in memory.

    Args:
        pixels: The image.
        largest: Maximum longer side of the result in pixels.

    Returns:
        The reduced image, uint8 (H // n, W // n, 3), and the factor n.

    Raises:
        ImageError: The image cannot be read.
    """
    factor = -(-max(pixels.height, pixels.width) // largest)
    height, width = max(1, pixels.height // factor), max(1, pixels.width // factor)
    if factor == 1:
        return pixels.read(0, 0, height, width), 1
    small = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_BYTES // (3 * factor * pixels.width))  # rows of the result per band
    for top in range(0, height, rows):
        count = min(rows, height - top)
        band = pixels.read(
            top * factor,
            0,
            min(count * factor, pixels.height - top * factor),
            min(width * factor, pixels.width),
        )
        small[top : top + count] = cv2.resize(band, (width, count), interpolation=cv2.INTER_AREA)
    return small, factor
