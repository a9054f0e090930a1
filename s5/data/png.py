"""Decode plain 8-bit PNG through GDAL (rasterio), which takes half of OpenCV's time."""

from pathlib import Path

import cv2
import numpy as np
from rasterio.io import MemoryFile

from s5.data.errors import ImageError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification


def is_plain(data: bytes, color_types: tuple[int, ...]) -> bool:
    """Whether a PNG has 8 bits a channel and one of the colour types."""
    return data[24] == 8 and data[25] in color_types


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
