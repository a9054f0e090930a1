"""Read and write images and masks as numpy arrays.

The format is taken from the first bytes of a file, not from its name. JPEG, BMP and WebP are decoded by
OpenCV, which is at least as fast as Pillow and torchvision and gives the same pixels; PNG and TIFF by
rasterio. Rules that hold for every format:

- images are uint8 (H, W, 3) RGB; a single channel is repeated, and only the first three channels are kept;
- other sample types are stretched linearly from their 0.5..99.5 percentiles, taken over all bands,
  to 0..255;
- pixels without data (a no-data value, NaN, an internal or external mask, alpha 0) are excluded from the
  stretch and become 0; `read_image_with_valid` returns where they are;
- the EXIF orientation is ignored, because masks do not have one;
- a truncated file is an error. OpenCV would silently fill the rest of such an image with grey or black.

An image can be a window of another or a member of an archive, see `s5.data.references`. A window has the
pixels that it has in the image read in full.

Call `init_worker` once in a loader worker, so that OpenCV starts no threads.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from s5.data import gdal_files, rasters
from s5.data.files import write_bytes
from s5.data.image_formats import (
    GREY,
    GREY_ALPHA,
    RGB,
    RGBA,
    decode_packed_png,
    decode_png,
    detect_format,
    header_size,
    is_complete,
    is_plain,
    png_size,
    transparent_grey,
    webp_has_alpha,
)
from s5.data.references import find, find_member
from s5.data.stored_mask import (
    DatasetMask,
    LoadedMask,
    MaskHeader,
    StoredMask,
    mask_header,
    plain_header,
    read_values,
)
from s5.errors import ImageError

MAX_PIXELS = 1 << 30
"""Pixels of the largest image that is decoded in full (3 GiB); OpenCV's limit.

TIFFs have no limit where they are read by windows: in data preparation and prediction."""

_Pixels = TypeVar("_Pixels")
_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_QUALITY = {
    ".jpg": cv2.IMWRITE_JPEG_QUALITY,
    ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
    ".webp": cv2.IMWRITE_WEBP_QUALITY,
}
# Row filters make masks larger and slower to read.
_FAST_TO_READ = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 3]
_HEADER_BYTES = 1 << 16  # usually everything before the pixels of a PNG or BMP
_RESTORE = "Restore it from its source, or remove it from the split"


def init_worker() -> None:
    """Set up OpenCV for a loader worker: no threads, no log lines on stderr.

    Call it in `worker_init_fn`; the process then has a single thread, and damaged files are reported only
    by `ImageError`.
    """
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image of any number of channels and depth.

    Returns:
        uint8 (H, W, 3) RGB. See the module for the conversion of other depths and channel counts.

    Raises:
        ImageError: The file is missing, truncated, of an unknown format or cannot be decoded.
    """
    return read_image_with_valid(path)[0]


def _decoder(read: Callable[[str | Path], _Pixels]) -> Callable[[str | Path], _Pixels]:
    """Convert any exception of a function that reads a file to an ImageError."""

    @wraps(read)
    def guarded(path: str | Path) -> _Pixels:
        with gdal_files.decoding(path):
            return read(path)

    return guarded


@_decoder
def read_image_with_valid(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image and its valid mask.

    Returns:
        The image, see `read_image`, and bool (H, W), False where it has no data; None if it has data
        everywhere.

    Raises:
        ImageError: See `read_image`.
    """
    reference = find(path)
    window = None if reference is None else reference.window
    if reference is None or window is None:
        return _decode_file(*read_file(path), path)
    if not rasters.is_open(reference):
        kind, data = read_file(path)
        if kind != "tiff":
            image, valid = _decode_file(kind, data, path)
            window.require_inside(image.shape[0], image.shape[1], path)
            valid = None if valid is None or window.of(valid).all() else window.of(valid).copy()
            return window.of(image).copy(), valid
    require_size(window.height, window.width, path)
    return rasters.read_window(reference, path)


def _decode_file(kind: str, data: bytes, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    if kind == "tiff":
        with rasters.open_raster(path) as raster:
            require_size(raster.height, raster.width, path)
            return raster.read_with_valid()
    if kind == "png":
        return _read_png(data, path)
    if kind == "webp" and webp_has_alpha(data):
        pixels = _decode(data, cv2.IMREAD_UNCHANGED, path)
        return _blanked(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), pixels[..., 3])
    return _decode(data, _COLOR, path), None


@_decoder
def read_mask(path: str | Path) -> np.ndarray:
    """Read the stored values of a mask (the indices of a palette image), without a label table.

    A mask with three channels is accepted if they are equal. Read the masks of a dataset with
    their label table, see `s5.data.masks.read_values`.

    Returns:
        uint8 (H, W).

    Raises:
        ImageError: See `read_image`; also for JPEG (lossy), colour-coded masks and values over 255.
    """
    with open_stored_mask(path) as stored:
        require_size(stored.header.height, stored.header.width, path)
        return read_values(stored, path)


@contextmanager
def open_stored_mask(path: str | Path) -> Iterator[StoredMask]:
    """Open a mask as stored in its file: a TIFF for reading by windows, other formats decoded in full.

    Raises:
        ImageError: See `read_image`; also for JPEG and WebP, which are lossy.
    """
    if (reference := find(path)) is not None and reference.window is not None:
        raise ImageError(path, "a mask cannot be a window", "Cut the mask to the size of the window")
    kind, data = read_file(path)
    _require_lossless(kind, path)
    if kind == "png":
        header = plain_header(data, path)
        if header is not None:
            packed = data[24] < 8
            values = decode_packed_png(data, path) if packed else decode_png(data, path)[0]
            yield LoadedMask(header, values[None])
            return
    with gdal_files.open_dataset(path if kind == "tiff" else data, path) as dataset:
        if kind == "tiff":
            yield DatasetMask(dataset, path)
            return
        require_size(dataset.height, dataset.width, path)
        loaded = DatasetMask(dataset, path).load()
    yield loaded


def read_mask_header(path: str | Path) -> MaskHeader:
    """Read the header of a mask without decoding it.

    Raises:
        ImageError: See `open_stored_mask`, for errors visible in the header.
    """
    with _open(path) as file:
        data = file.read(_HEADER_BYTES)
        kind = _require_format(data, path)
        _require_lossless(kind, path)
        if kind == "png" and b"IDAT" not in data:
            data += file.read()
    if kind == "png" and (header := plain_header(data, path)) is not None:
        return header
    with gdal_files.open_dataset(path if kind == "tiff" else data, path) as dataset:
        return mask_header(dataset, path)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels, from the header; the last pixel of a TIFF must be readable, too.

    Raises:
        ImageError: The file is missing or its header cannot be read.
    """
    if (reference := find(path)) is not None:
        kind, data = read_file(path)
        size = gdal_files.size(path) if kind == "tiff" else header_size(io.BytesIO(data), kind, path)
        if reference.window is None:
            return size
        reference.window.require_inside(*size, path)
        return reference.window.height, reference.window.width
    with _open(path) as file, _reading(path):
        kind = _require_format(file.read(16), path)
        file.seek(0)
        return gdal_files.size(path) if kind == "tiff" else header_size(file, kind, path)


def write_image(
    path: str | Path, array: np.ndarray, quality: int = 95, valid: np.ndarray | None = None
) -> None:
    """Write an image atomically, in the format of the extension.

    Args:
        path: `.jpg`, `.png`, `.webp` or `.bmp`; missing folders are created.
        array: uint8 (H, W, 3) RGB or (H, W).
        quality: 1..100, for JPEG and WebP.
        valid: bool (H, W), false where an RGB image has no data; these pixels are transparent. PNG only.

    Raises:
        ImageError: The array cannot be encoded, or `valid` is given for another format than PNG.
    """
    suffix = Path(path).suffix
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    if valid is not None:
        if suffix.lower() != ".png":
            raise ImageError(path, "only PNG can store where an image has no data", "Name it .png")
        pixels = cv2.merge((pixels, np.where(valid, np.uint8(255), np.uint8(0))))
    option = _QUALITY.get(suffix.lower())
    done, encoded = cv2.imencode(suffix, pixels, [] if option is None else [option, quality])
    if not done:
        raise ImageError(path, f"an array of shape {array.shape} and type {array.dtype} cannot be encoded")
    write_bytes(path, encoded.tobytes())


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write raw values, uint8 (H, W), as a grey PNG, atomically."""
    if Path(path).suffix.lower() != ".png":
        raise ImageError(path, "masks must be written as PNG, which is lossless", "Name it .png")
    done, encoded = cv2.imencode(".png", mask, _FAST_TO_READ)
    if not done:
        raise ImageError(path, f"an array of shape {mask.shape} and type {mask.dtype} cannot be encoded")
    write_bytes(path, encoded.tobytes())


def _open(path: str | Path) -> io.BufferedReader:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise ImageError(path, "file not found", "Check data_root and the split file") from None
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a NUL byte in the path
        raise ImageError(
            path, f"is not a valid path ({error})", "Correct the list that contains it"
        ) from error


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn errors of the disk into an ImageError."""
    try:
        yield
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})", "Check the disk") from error


def read_file(path: str | Path) -> tuple[str, bytes]:
    """Format and contents of an image file; only the first bytes of a TIFF, which is read by windows.

    A reference to a window gives all of its file.

    Raises:
        ImageError: The file is missing, truncated, of an unknown format or too large to be decoded.
    """
    kind, data = _contents(path)
    if kind == "tiff":
        return kind, data
    if not is_complete(data, kind):
        raise ImageError(path, f"truncated {kind.upper()} ({len(data)} bytes)", _RESTORE)
    if kind == "png":  # OpenCV has this limit for the others
        width, height = png_size(data, path)
        require_size(height, width, path)
    return kind, data


def _contents(path: str | Path) -> tuple[str, bytes]:
    """Format and contents of a file or member of an archive; only the first bytes of a TIFF."""
    reference = find(path)
    if reference is not None and reference.member is not None:
        stored = find_member(reference)
        data = stored.read(str(path), 16)
        kind = _require_format(data, path)
        return kind, data if kind == "tiff" else stored.read(str(path))
    with _open(path if reference is None else reference.file) as file, _reading(path):
        data = file.read(16)
        kind = _require_format(data, path)
        return kind, data if kind == "tiff" else data + file.read()


def _require_format(data: bytes, path: str | Path) -> str:
    kind = detect_format(data)
    if kind is None:
        reason = f"is not an image (starts with {data[:8]!r})" if data else "is empty"
        raise ImageError(path, reason, "JPEG, PNG, BMP, WebP and TIFF can be read")
    return kind


def _require_lossless(kind: str, path: str | Path) -> None:
    if kind in ("jpeg", "webp"):
        raise ImageError(
            path, f"a mask cannot be {kind.upper()}: lossy compression changes values", "Use PNG"
        )


def _read_png(data: bytes, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    plain = is_plain(data, (GREY, RGB, GREY_ALPHA, RGBA))
    if plain and b"tRNS" not in data[: data.find(b"IDAT")]:
        image, alpha = decode_png(data, path)
        return _blanked(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), alpha)
    if data[24] < 8 and data[25] == GREY:  # OpenCV scales the values to brightness, GDAL does not
        image, key = _decode(data, _COLOR, path), transparent_grey(data)
        alpha = None if key is None else (decode_packed_png(data, path) != key).astype(np.uint8)
        return _blanked(image, alpha)
    with rasters.open_raster(data, path) as raster:
        return raster.read_with_valid()


def _blanked(image: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Set fully transparent pixels to 0; returns the image and its valid mask, None if all are valid."""
    if alpha is None or alpha.all():
        return image, None
    valid = alpha > 0
    image[~valid] = 0
    return image, valid


def require_size(height: int, width: int, path: str | Path) -> None:
    """Refuse an image that is too large to be decoded in full; damaged headers can claim any size.

    Raises:
        ImageError: The image has more than `MAX_PIXELS`.
    """
    if height * width > MAX_PIXELS:
        raise _too_large(path, f" of {height}x{width} (height x width)")


def _too_large(path: str | Path, size: str = "") -> ImageError:
    memory = f"{MAX_PIXELS} pixels ({3 * MAX_PIXELS >> 30} GiB)"
    reason = f"an image{size} exceeds the limit of {memory} for decoding"
    hint = "Convert it to a tiled TIFF, which is read by windows, and cut it with 'python -m s5.data.prepare'"
    return ImageError(path, reason, hint)


def _decode(data: bytes, flags: int, path: str | Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX" in error.err:
            raise _too_large(path) from error
        raise ImageError(path, f"cannot be decoded ({error.err})", _RESTORE) from error
    if image is None:
        raise ImageError(path, "cannot be decoded: its data are damaged", _RESTORE)
    return image
