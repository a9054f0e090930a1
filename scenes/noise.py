"""Random fields: smooth noise of a given cell size, with and without direction."""

import cv2
import numpy as np


def noise(rng: np.random.Generator, size: int, cell: float) -> np.ndarray:
    """Smooth noise float32 (size, size) of about unit variance; `cell` is its grain in pixels."""
    count = max(2, round(size / max(cell, 1.0)))
    grid = rng.standard_normal((count, count), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def fractal(rng: np.random.Generator, size: int, cell: float, octaves: int = 3) -> np.ndarray:
    """Sum of octaves of `noise`, each half the cell and 0.55 the amplitude of the one before."""
    weights = 0.55 ** np.arange(octaves)
    weights /= np.sqrt((weights**2).sum())
    out = np.zeros((size, size), np.float32)
    for octave, weight in enumerate(weights):
        out += np.float32(weight) * noise(rng, size, cell / 2**octave)
    return out


def streaks(rng: np.random.Generator, size: int, along: float, across: float, angle: float) -> np.ndarray:
    """Noise float32 (size, size) stretched to cells of `along` x `across` pixels, `along` heading `angle`."""
    c, s = np.cos(angle), np.sin(angle)
    radius = 0.75 * size
    rows, columns = int(2 * radius / across) + 4, int(2 * radius / along) + 4
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    matrix = np.array([[c / along, s / along, 0], [-s / across, c / across, 0]])
    matrix[:, 2] = (columns / 2, rows / 2) - matrix[:, :2] @ (size / 2, size / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)
