"""Outlines in longitude and latitude as RFC 7946 wants them: within ±180, cut at the antimeridian.

A ring is float64 (m, 2), longitude and latitude in degrees, without the first point repeated at its end.
"""

from __future__ import annotations

import numpy as np

EDGE = 180.0


def longest_step(ring: np.ndarray) -> float:
    """The largest difference of longitude between neighbouring points, the shorter way round, in degrees."""
    return float(np.abs(_steps(ring)).max())


def cut(ring: np.ndarray) -> list[np.ndarray]:
    """Bring a ring within ±180 degrees and cut it at the antimeridian.

    Between neighbouring points the shorter way round is meant. A ring around a pole becomes one that reaches
    from -180 to 180 and up to the pole.

    Args:
        ring: of a convex shape of the map, or of one that a meridian leaves once.

    Returns:
        One ring, or the parts west and east of the antimeridian.
    """
    steps = _steps(ring)
    longitudes = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])  # (m + 1,), the first point twice
    continuous = np.stack([longitudes[:-1], ring[:, 1]], 1)
    if abs(steps.sum()) > EDGE:
        return [_around_pole(continuous if steps.sum() > 0 else _backwards(continuous))]
    continuous[:, 0] -= 2 * EDGE * np.floor((continuous[:, 0].min() + EDGE) / (2 * EDGE))
    if continuous[:, 0].max() <= EDGE:
        return [continuous]
    west, east = _side(continuous, 1), _side(continuous, -1)  # of the antimeridian, on the map
    return [west, east - [2 * EDGE, 0]]


def signed_area(ring: np.ndarray) -> float:
    """Positive if the points turn from the first axis to the second, counter-clockwise on a map."""
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _steps(ring: np.ndarray) -> np.ndarray:
    """Differences of longitude (m,) from each point to the next, within ±180."""
    steps = np.roll(ring[:, 0], -1) - ring[:, 0]
    return steps - 2 * EDGE * np.rint(steps / (2 * EDGE))


def _side(ring: np.ndarray, sign: int) -> np.ndarray:
    """The part of a ring on one side of longitude 180 (Sutherland and Hodgman, 1974)."""
    points: list[np.ndarray] = []
    for start, end in zip(ring, np.roll(ring, -1, 0), strict=True):
        start_inside, end_inside = sign * (start[0] - EDGE) <= 0, sign * (end[0] - EDGE) <= 0
        if start_inside:
            points.append(start)
        if start_inside != end_inside:
            share = (EDGE - start[0]) / (end[0] - start[0])
            points.append(np.array([EDGE, start[1] + share * (end[1] - start[1])]))
    return np.array(points)


def _backwards(ring: np.ndarray) -> np.ndarray:
    """The same ring in the other direction from the same first point, longitudes rising."""
    turned = np.roll(ring[::-1], 1, 0)
    turned[1:, 0] += 2 * EDGE
    return turned


def _around_pole(ring: np.ndarray) -> np.ndarray:
    """From -180 to 180 and over the pole, of continuous longitudes that go round eastwards."""
    once_more = np.concatenate([ring, ring[:1] + [2 * EDGE, 0]])
    first = EDGE + 2 * EDGE * np.ceil((once_more[0, 0] - EDGE) / (2 * EDGE))  # antimeridian that it crosses
    latitude = np.interp(first, *once_more.T)
    before = ring[:, 0] < first
    inside = np.concatenate([ring[~before] - [2 * EDGE, 0], ring[before]])
    inside[:, 0] -= first - EDGE
    pole = np.copysign(90.0, ring[:, 1].mean())
    ends = np.array([[EDGE, latitude], [EDGE, pole], [-EDGE, pole], [-EDGE, latitude]])
    return np.concatenate([inside, ends])
