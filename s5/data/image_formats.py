"""Recognise image formats by their first bytes, and tell whole files from truncated ones without decoding."""

from __future__ import annotations

import struct
from collections.abc import Callable

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def detect_format(data: bytes) -> str | None:
    """``jpeg``, ``png``, ``bmp``, ``webp`` or ``tiff`` from the first 12 bytes of a file; None if neither."""
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


def is_complete(data: bytes, kind: str) -> bool:
    """Whether a whole JPEG, PNG, BMP or WebP file is there.

    Only the structure is looked at, in microseconds; damage inside the pixel data is the decoder's to find.
    """
    return _COMPLETE[kind](data)


def _jpeg_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first start-of-scan of the image itself.

    Markers cannot occur inside entropy-coded data, but they do inside an embedded preview, which lies in an
    application segment before the scan: so the segments are walked by their lengths up to the scan.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan
            return data.rfind(b"\xff\xd9", at) > 0
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill byte; markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _png_complete(data: bytes) -> bool:
    """Whether the end chunk is there; it is searched for because some writers add bytes after it."""
    return data.rfind(b"IEND\xaeB`\x82") > 0


def _bmp_complete(data: bytes) -> bool:
    if len(data) < 30:
        return False
    offset, header, width, height, _, depth = struct.unpack("<IIiiHH", data[10:30])
    if header < 40 or (len(data) >= 34 and data[30:34] not in (b"\0\0\0\0", b"\3\0\0\0")):
        return True  # old or run-length coded: the decoder finds out
    return len(data) >= offset + (width * depth + 31) // 32 * 4 * abs(height)


def _webp_complete(data: bytes) -> bool:
    return len(data) >= 12 and len(data) >= 8 + int.from_bytes(data[4:8], "little")


_COMPLETE: dict[str, Callable[[bytes], bool]] = {
    "jpeg": _jpeg_complete,
    "png": _png_complete,
    "bmp": _bmp_complete,
    "webp": _webp_complete,
}
