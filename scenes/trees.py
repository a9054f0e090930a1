"""Trees: all crowns of a scene are drawn at once from a distance transform of their positions."""

import cv2
import numpy as np

from scenes.canvas import SCALE, Canvas
from scenes.classes import NATURAL, Material, is_one_of
from scenes.geometry import fractal, noise


def plant(canvas: Canvas) -> None:
    """Cover the forest floor with trees, then draw them and `canvas.trees`; all ground must be painted.

    Crowns that meet are cut along their bisector, as in a closed canopy. Single trees whose crown would
    extend far beyond natural ground are skipped.
    """
    rows = _forest(canvas)
    if canvas.trees:
        single = np.array([(t.x, t.y, t.radius, t.height, *t.color) for t in canvas.trees])
        rows = np.concatenate([rows, _rooted(canvas, single)])
    if len(rows):
        _grow(canvas, rows)


def _forest(canvas: Canvas) -> np.ndarray:
    """Positions and looks (N, 7) of the trees that stand on forest floor: x, y, radius, height, RGB."""
    rng, palette = canvas.rng, canvas.palette
    radius = max(rng.uniform(1.6, 4.2), 2.0 * canvas.gsd)
    spacing, reach = radius * rng.uniform(1.15, 1.5), canvas.half + 6
    axis = np.arange(-reach, reach, spacing)
    x, y = (g.ravel() for g in np.meshgrid(axis, axis))
    x, y = x + rng.uniform(-0.5, 0.5, x.shape) * spacing, y + rng.uniform(-0.5, 0.5, x.shape) * spacing
    limit = canvas.half - canvas.gsd
    points = np.clip(np.stack([x, y], 1), -limit, limit)
    keep = (canvas.material_at(points) == Material.FLOOR) & (rng.random(len(x)) < rng.uniform(0.8, 1.0))
    x, y = x[keep], y[keep]
    stand = noise(rng, 32, 8)[
        np.clip((y / canvas.half + 1) * 16, 0, 31).astype(int),
        np.clip((x / canvas.half + 1) * 16, 0, 31).astype(int),
    ]
    species = (stand + 0.5 * rng.normal(size=len(x)) > 0.3).astype(int)
    scale = rng.uniform(0.6, 1.25, len(x))
    color = palette.species[species] * rng.normal(1, 0.11, (len(x), 1)) + rng.normal(0, 3, (len(x), 3))
    return np.column_stack([x, y, radius * scale, (2.2 * radius + 2) * scale, color])


def _rooted(canvas: Canvas, rows: np.ndarray) -> np.ndarray:
    """Keep the trees on natural ground whose crown does not reach far beyond it."""
    natural = is_one_of(canvas.material[::SCALE, ::SCALE], NATURAL)
    room = cv2.distanceTransform(natural, cv2.DIST_L2, 3) * canvas.gsd
    column, row = np.round(canvas.image_pixels(rows[:, :2]) - 0.5).astype(int).T
    inside = (column >= 0) & (column < canvas.size) & (row >= 0) & (row < canvas.size)
    limit = canvas.size - 1
    there = room[np.clip(row, 0, limit), np.clip(column, 0, limit)]
    return rows[inside & (there > 0.7 * rows[:, 2])]


def _grow(canvas: Canvas, rows: np.ndarray) -> None:
    """Draw crowns (N, 7) into all layers, lit by the sun, at the resolution of the image."""
    size, pad = canvas.size, int(min(5 / canvas.gsd, 32))
    seeds = np.full((size + 2 * pad, size + 2 * pad), 255, np.uint8)
    column, row = np.round(canvas.image_pixels(rows[:, :2]) - 0.5 + pad).astype(int).T
    keep = (column >= 0) & (column < seeds.shape[1]) & (row >= 0) & (row < seeds.shape[0])
    rows, column, row = rows[keep], column[keep], row[keep]
    if not len(rows):
        return
    seeds[row, column] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    tree = np.zeros(labels.max() + 1, np.int64)
    tree[labels[row, column]] = np.arange(len(rows))
    inner = slice(pad, pad + size)
    _draw_crowns(canvas, rows.astype(np.float32)[tree[labels[inner, inner]]], distance[inner, inner])


def _draw_crowns(canvas: Canvas, looks: np.ndarray, distance: np.ndarray) -> None:
    """Draw the crowns; `looks` (S, S, 7) is the nearest tree's row and `distance` (S, S) the pixels to it."""
    rng, light = canvas.rng, canvas.sun.direction
    cell = 1 / canvas.gsd
    leaves = fractal(rng, canvas.size, max(1.4 * cell, 2), 3)
    ratio = distance * np.float32(canvas.gsd) / looks[..., 2]
    inside = cv2.medianBlur((ratio * (1 + 0.22 * leaves) < 1).astype(np.uint8), 3)
    dome = np.sqrt(1 - np.minimum(ratio, 1) ** 2)
    height = looks[..., 3] * (0.55 + 0.45 * dome + 0.07 * leaves)
    slope = cv2.GaussianBlur(height, (0, 0), max(0.25 * cell, 0.5))
    dx, dy = cv2.Sobel(slope, cv2.CV_32F, 1, 0), cv2.Sobel(slope, cv2.CV_32F, 0, 1)
    lit = np.clip(1 - 0.45 * (dx * light[0] + dy * light[1]) / 8 * cell, 0.35, 1.5)
    color = np.clip(looks[..., 4:], 0, 255).astype(np.uint8)
    crown = np.full_like(inside, Material.CROWN)
    where = _enlarge(inside)
    for layer, values in (
        (canvas.shade, lit),
        (canvas.height, height),
        (canvas.material, crown),
        (canvas.color, color),
    ):
        cv2.copyTo(_enlarge(values.astype(layer.dtype)), where, layer)


def _enlarge(layer: np.ndarray) -> np.ndarray:
    return cv2.resize(layer, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
