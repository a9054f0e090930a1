"""Bring 16-bit and float images to 8 bit by a percentile stretch."""

from __future__ import annotations

import numpy as np

PERCENTILES = (0.5, 99.5)
"""Percentiles of the values that become 0 and 255."""


def stretch_limits(pixels: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """The values that become 0 and 255: :data:`PERCENTILES` of the pixels that are ``valid``."""
    values = pixels[valid] if valid is not None else pixels.ravel()
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def stretch(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low``..``high`` linearly to 0..255 (uint8), values outside clipped, NaN to 0."""
    scale = 255.0 / (high - low) if high > low else 0.0
    # float32 holds these types exactly, but not numbers of 32 bits and more.
    exact = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    wide: type[np.floating] = np.float32 if exact else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are clipped, NaN becomes 0
        scaled = (pixels.astype(wide) - wide(low)) * wide(scale)
    return np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)
