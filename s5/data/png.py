"""Decode plain 8-bit PNG through GDAL (rasterio), which takes half of OpenCV's time; palettes of PNG."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from rasterio.io import MemoryFile

from s5.data.errors import ImageError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification


def is_plain(data: bytes, color_types: tuple[int, ...]) -> bool:
    """Whether a PNG has 8 bits a channel and one of the colour types."""
    return data[24] == 8 and data[25] in color_types


def read_palette(data: bytes) -> tuple[tuple[int, int, int, int], ...]:
    """RGBA of each entry of a PNG's palette; empty without one. The pixels may be missing in ``data``."""
    chunks = _chunks_before_pixels(data)
    return _palette(chunks.get(b"PLTE", b""), chunks.get(b"tRNS", b""))


def transparent_grey(data: bytes) -> int | None:
    """Value that is transparent in a grey PNG; None without one."""
    chunk = _chunks_before_pixels(data).get(b"tRNS")
    return None if chunk is None else int.from_bytes(chunk[:2], "big")


def _chunks_before_pixels(data: bytes) -> dict[bytes, bytes]:
    """Contents of the chunks by their type."""
    chunks, at = {}, 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + length]
        at += 12 + length
    return chunks


@lru_cache(maxsize=16)  # the masks of a dataset mostly share one
def _palette(colors: bytes, alpha: bytes) -> tuple[tuple[int, int, int, int], ...]:
    entries = zip(colors[0::3], colors[1::3], colors[2::3], strict=False)
    return tuple((r, g, b, alpha[i] if i < len(alpha) else 255) for i, (r, g, b) in enumerate(entries))


def decode_png(data: bytes, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an 8-bit PNG.

    Returns:
        uint8 (H, W): grey values, or the indices of a palette; or (H, W, 3) RGB. And the alpha channel,
        uint8 (H, W), if there is one.

    Raises:
        ImageError: the data are damaged.
    """
    try:
        with MemoryFile(data) as file, file.open(driver="PNG") as dataset:
            bands = dataset.read()  # (bands, H, W)
    except Exception as error:
        hint = "Restore it from its source, or take it out of the split"
        raise ImageError(path, f"cannot be decoded ({error or type(error).__name__})", hint) from error
    alpha = bands[-1] if len(bands) in (2, 4) else None
    return bands[0] if len(bands) < 3 else cv2.merge(tuple(bands[:3])), alpha
