"""Recognise image formats by their first bytes, detect truncated files without decoding, and decode PNG."""

import io
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from rasterio.io import MemoryFile

from s5.data.references import find, read_member
from s5.errors import ImageError

_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type; others have one
_DEFLATE_RATIO = 1032  # highest possible compression ratio of zlib

_RESTORE = "Restore it from its source, or remove it from the split"
# Classes, not Image.open, which probes every format and refuses images over 179 megapixels.
_PILLOW: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def detect_format(data: bytes) -> str | None:
    """`jpeg`, `png`, `bmp`, `webp` or `tiff` from the first 12 bytes of a file; None for other formats."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(TIFF_MAGIC):
        return "tiff"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return None


def is_tiff(path: str | Path) -> bool:
    """Whether an image is a TIFF, by its first bytes; False if unreadable, which `read_image` reports."""
    try:
        reference = find(path)
        if reference is not None and reference.member is not None:
            return detect_format(read_member(reference, 16)) == "tiff"
        with open(path if reference is None else reference.file, "rb") as file:
            return detect_format(file.read(16)) == "tiff"
    except (OSError, ImageError):
        return False


def is_complete(data: bytes, kind: str) -> bool:
    """Whether a JPEG, PNG, BMP or WebP file is not truncated.

    Checks only the structure, in microseconds; damaged pixel data is left to the decoder.
    """
    return _COMPLETE[kind](data)


def is_plain_rgb(data: bytes, kind: str) -> bool:
    """Whether a JPEG or PNG file has three 8-bit channels: RGB, or JPEG's YCbCr."""
    if kind == "png":
        return data[24:26] == b"\x08\x02"
    if kind != "jpeg":
        return False
    frames = (at for marker, at in _jpeg_segments(data) if marker in _START_OF_FRAME)
    at = next(frames, len(data))
    return data[at + 4 : at + 5] == b"\x08" and data[at + 9 : at + 10] == b"\x03"


_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the other three are tables
_START_OF_SCAN = 0xDA


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and offset of the segments up to the first start of scan, following their lengths."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill byte; markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        yield marker, at
        if marker == _START_OF_SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first start of scan of the image itself.

    Markers cannot occur in entropy-coded data, but they do occur in an embedded preview, which is in an
    application segment before the scan, so the segments are followed up to the scan.
    """
    scans = (at for marker, at in _jpeg_segments(data) if marker == _START_OF_SCAN)
    return data.rfind(b"\xff\xd9", next(scans, len(data))) > 0


def _png_complete(data: bytes) -> bool:
    """Whether all chunks are present, with at least as many bytes as an image of this size needs.

    Some writers append bytes after the end chunk. Damaged lengths and sizes can claim gigabytes, which
    decoders would allocate.
    """
    if data[12:16] != b"IHDR" or len(data) < 33:
        return False
    width, height, depth, color_type = struct.unpack(">IIBB", data[16:26])
    if width * height * depth * _PNG_CHANNELS.get(color_type, 1) > 8 * _DEFLATE_RATIO * len(data):
        return False
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False


def _bmp_complete(data: bytes) -> bool:
    if len(data) < 30:
        return False
    offset, header, width, height, _, depth = struct.unpack("<IIiiHH", data[10:30])
    if header < 40 or (len(data) >= 34 and data[30:34] not in (b"\0\0\0\0", b"\3\0\0\0")):
        return True  # old format or run-length coded: left to the decoder
    return len(data) >= offset + (width * depth + 31) // 32 * 4 * abs(height)


def _webp_complete(data: bytes) -> bool:
    return len(data) >= 30 and len(data) >= 8 + int.from_bytes(data[4:8], "little")


_COMPLETE: dict[str, Callable[[bytes], bool]] = {
    "jpeg": _jpeg_complete,
    "png": _png_complete,
    "bmp": _bmp_complete,
    "webp": _webp_complete,
}


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification


def is_plain(data: bytes, color_types: tuple[int, ...]) -> bool:
    """Whether a PNG has 8 bits per channel and one of the colour types."""
    return data[24] == 8 and data[25] in color_types


def read_palette(data: bytes) -> tuple[tuple[int, int, int, int], ...]:
    """RGBA of each palette entry of a PNG; empty without a palette. `data` may end before the pixels."""
    chunks = _chunks_before_pixels(data)
    return _palette(chunks.get(b"PLTE", b""), chunks.get(b"tRNS", b""))


def transparent_grey(data: bytes) -> int | None:
    """Transparent value of a grey PNG, or None."""
    chunk = _chunks_before_pixels(data).get(b"tRNS")
    return None if chunk is None else int.from_bytes(chunk[:2], "big")


def _chunks_before_pixels(data: bytes) -> dict[bytes, bytes]:
    """Contents of the chunks by type."""
    chunks, at = {}, 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + length]
        at += 12 + length
    return chunks


@lru_cache(maxsize=16)  # the masks of a dataset usually share one palette
def _palette(colors: bytes, alpha: bytes) -> tuple[tuple[int, int, int, int], ...]:
    entries = zip(colors[0::3], colors[1::3], colors[2::3], strict=False)
    return tuple((r, g, b, alpha[i] if i < len(alpha) else 255) for i, (r, g, b) in enumerate(entries))


def decode_png(data: bytes, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an 8-bit PNG.

    Returns:
        Image uint8 (H, W) of grey values or palette indices, or (H, W, 3) RGB; alpha channel uint8 (H, W), or
        None.

    Raises:
        ImageError: The data are damaged.
    """
    try:
        with MemoryFile(data) as file, file.open(driver="PNG") as dataset:
            bands = dataset.read()  # (bands, H, W)
    except Exception as error:
        raise ImageError(path, f"cannot be decoded ({error or type(error).__name__})", _RESTORE) from error
    alpha = bands[-1] if len(bands) in (2, 4) else None
    return bands[0] if len(bands) < 3 else cv2.merge(tuple(bands[:3])), alpha


def decode_packed_png(data: bytes, path: str | Path) -> np.ndarray:
    """Values and palette indices of 1, 2 and 4 bits, uint8 (H, W): faster than GDAL; OpenCV would scale them.

    Raises:
        ImageError: The data are damaged.
    """
    try:
        with _PILLOW["png"](io.BytesIO(data)) as image:
            mask = np.asarray(image)
    except Exception as error:  # decoders raise many types for damaged data
        raise ImageError(path, f"cannot be decoded ({error})", _RESTORE) from error
    spread = {2: 85, 4: 17}.get(data[24], 1) if data[25] == GREY else 1
    return mask.astype(np.uint8) // np.uint8(spread)


def png_size(data: bytes, path: str | Path) -> tuple[int, int]:
    """Width and height of a PNG.

    Raises:
        ImageError: The header is cut off.
    """
    if len(data) < 33:  # signature and header chunk
        raise ImageError(path, f"truncated PNG ({len(data)} bytes)", _RESTORE)
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def header_size(file: BinaryIO, kind: str, path: str | Path) -> tuple[int, int]:
    """Height and width of a JPEG, PNG, BMP or WebP file from its header.

    Raises:
        ImageError: The header cannot be read.
    """
    try:
        with _PILLOW[kind](file) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise many types for damaged data
        raise ImageError(path, f"its header cannot be read ({error})", _RESTORE) from error


def webp_has_alpha(data: bytes) -> bool:
    """Check the flag of the extended header, or of lossless images."""
    return (data[12:16] == b"VP8X" and bool(data[20] & 0x10)) or (
        data[12:16] == b"VP8L" and bool(data[24] & 0x10)
    )
