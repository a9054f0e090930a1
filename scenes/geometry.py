"""Plane geometry (frames, polygons and polylines in metres, x right, y down) and random noise fields."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

Point = np.ndarray | tuple[float, float]


class Pose(NamedTuple):
    """Centre (metres) and heading (radians from x towards y) of something placed in the scene."""

    x: float
    y: float
    angle: float


def rotate(points: np.ndarray, angle: float) -> np.ndarray:
    """Rotate points (..., 2) by `angle` radians from x towards y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points, float) @ np.array([[c, s], [-s, c]])


def at(pose: Pose, points: np.ndarray) -> np.ndarray:
    """Move points (..., 2) given around the origin, heading along x, to `pose`."""
    return rotate(points, pose.angle) + (pose.x, pose.y)


@dataclass(frozen=True)
class Frame:
    """A rotated and gently bent coordinate system for streets, lots and parcels.

    `bend` (metres) displaces each axis by a sine of the other with wavelength `wave` (metres).
    """

    origin: Point = (0.0, 0.0)
    angle: float = 0.0
    bend: float = 0.0
    wave: float = 200.0
    phase: float = 0.0

    def world(self, points: np.ndarray) -> np.ndarray:
        """Map local points (..., 2) to the world."""
        points = np.asarray(points, float)
        waves = np.sin(2 * np.pi * points[..., ::-1] / self.wave + (self.phase, 2.1 * self.phase))
        return rotate(points + self.bend * waves, self.angle) + self.origin

    def local(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `world` for an unbent frame; an approximation (error < 2 * bend) for a bent one."""
        return rotate(np.asarray(points, float) - self.origin, -self.angle)

    def moved(self, u: float, v: float, turn: float = 0.0) -> "Frame":
        """An unbent frame whose origin lies at local (u, v), turned by `turn` radians."""
        return Frame(self.world(np.array([u, v])), self.angle + turn)

    def pose(self, u: float, v: float, angle: float = 0.0) -> Pose:
        """Pose at local (u, v), `angle` measured from the local u axis as it runs there."""
        here, ahead = self.world(np.array([(u, v), (u + 1.0, v)]))
        along = np.arctan2(ahead[1] - here[1], ahead[0] - here[0])
        return Pose(float(here[0]), float(here[1]), float(along + angle))


def box(length: float, width: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Corners (4, 2) of an axis-parallel rectangle around (x, y)."""
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (length / 2, width / 2) + (x, y)


def span(u0: float, v0: float, u1: float, v1: float, steps: int = 1) -> np.ndarray:
    """Outline (4 * steps, 2) of a rectangle given by two corners, edges subdivided so that it can bend."""
    t = np.arange(steps) / steps
    u, v = u0 + (u1 - u0) * t, v0 + (v1 - v0) * t
    top, right = np.stack([u, 0 * u + v0], 1), np.stack([0 * v + u1, v], 1)
    bottom, left = np.stack([u1 + u0 - u, 0 * u + v1], 1), np.stack([0 * v + u0, v1 + v0 - v], 1)
    return np.concatenate([top, right, bottom, left])


def curve(rng: np.random.Generator, start: Point, end: Point, bend: float, count: int = 48) -> np.ndarray:
    """Smooth random polyline (count, 2) from about `start` to about `end`, swinging by some `bend` metres."""
    t = np.linspace(0, 1, count)[:, None]
    start, end = np.asarray(start, float), np.asarray(end, float)
    direction = (end - start) / np.linalg.norm(end - start)
    swing = sum(rng.normal() / k * np.sin(np.pi * (k * t + rng.uniform(0, 2))) for k in (1.0, 2.0, 3.7))
    return start + (end - start) * t + bend * swing * direction[::-1] * (-1, 1)


def normals(line: np.ndarray) -> np.ndarray:
    """Unit normals (N, 2) of a polyline (N, 2), to the right of its direction (y down)."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return tangent[:, ::-1] * (-1, 1)


def offset(line: np.ndarray, distance: float | np.ndarray) -> np.ndarray:
    """Shift a polyline (N, 2) sideways by `distance` (scalar or (N,)) metres along its normals."""
    return line + normals(line) * np.reshape(distance, (-1, 1))


def ribbon(line: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Polygon around a polyline reaching `left` and `right` (N,) metres to its sides."""
    return np.concatenate([offset(line, -left), offset(line, right)[::-1]])


def walk(line: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points (K, 2) and headings (K,) of a polyline at arc lengths `positions` (K,) metres."""
    steps = np.diff(line, axis=0)
    arc = np.concatenate([[0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    points = np.stack([np.interp(positions, arc, line[:, k]) for k in (0, 1)], 1)
    segment = np.clip(np.searchsorted(arc, positions, side="right") - 1, 0, len(steps) - 1)
    return points, np.arctan2(steps[segment, 1], steps[segment, 0])


def length(line: np.ndarray) -> float:
    """Length of a polyline in metres."""
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def blob(
    rng: np.random.Generator, x: float, y: float, radius: float, rough: float = 0.25, count: int = 72
) -> np.ndarray:
    """Closed organic outline (count, 2) around (x, y); `rough` is the relative variation of the radius."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    r = 1 + sum(rough * rng.normal() / k * np.sin(k * t + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5, 9))
    r = np.clip(r, 0.25, None) * radius
    return np.stack([x + r * np.cos(t), y + r * np.sin(t) * rng.uniform(0.6, 1.0)], 1)


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
