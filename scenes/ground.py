"""Open ground: parcels with crop rows, meadows, woods, and hedges and tracks along parcel borders."""

from typing import NamedTuple

import cv2
import numpy as np

from scenes.canvas import Canvas
from scenes.classes import NATURAL, Material, is_one_of
from scenes.geometry import Frame, blob, fractal, length, noise, span, walk
from scenes.palette import Palette, mix

Rect = tuple[float, float, float, float]


class Cover(NamedTuple):
    """How a parcel looks: two colours that mix in patches, and its rows."""

    material: Material
    light: np.ndarray
    dark: np.ndarray
    angle: float
    period: float  # metres between rows
    strength: float  # relative brightness of rows
    square: float  # 0 sine rows .. 1 sharp stripes
    tracks: float  # relative darkness of tractor tracks


def split(rng: np.random.Generator, rect: Rect, side: float) -> list[Rect]:
    """Cut a rectangle in random proportions until its pieces measure about `side` metres."""
    u0, v0, u1, v1 = rect
    wide, tall = u1 - u0, v1 - v0
    if max(wide, tall) < side * rng.uniform(1.0, 2.2):
        return [rect]
    share = rng.uniform(0.3, 0.7)
    if wide * rng.uniform(0.7, 1.4) > tall:
        cut = u0 + share * wide
        return split(rng, (u0, v0, cut, v1), side) + split(rng, (cut, v0, u1, v1), side)
    cut = v0 + share * tall
    return split(rng, (u0, v0, u1, cut), side) + split(rng, (u0, cut, u1, v1), side)


def crop_cover(rng: np.random.Generator, palette: Palette, angle: float, gsd: float) -> Cover:
    """Draw a cultivated parcel; rows run along `angle` and are wide enough to show at this resolution."""
    color = palette.crop(rng)
    period = max(rng.choice([0.9, 1.6, 2.5, 5.0], p=(0.3, 0.3, 0.25, 0.15)), rng.uniform(2.8, 4.0) * gsd)
    return Cover(
        Material.CROP,
        color * rng.uniform(1.02, 1.18),
        mix(color, palette.crop(rng), 0.3) * rng.uniform(0.8, 0.98),
        angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03),
        period,
        rng.uniform(0.02, 0.13),
        rng.uniform(0, 0.7),
        rng.choice([0.0, rng.uniform(0.06, 0.16)]),
    )


def grass_cover(rng: np.random.Generator, palette: Palette, angle: float, mown: float = 0.3) -> Cover:
    """Draw a meadow or lawn; with probability `mown` it shows mowing stripes."""
    color = palette.meadow(rng)
    strength = rng.uniform(0.02, 0.07) if rng.random() < mown else 0.0
    light, dark = (
        color * rng.uniform(1.03, 1.2),
        mix(color, palette.crop(rng), 0.25) * rng.uniform(0.75, 0.95),
    )
    period = rng.uniform(6, 14)
    return Cover(Material.GRASS, light, dark, angle + rng.normal(0, 0.3), period, strength, 0.9, 0.0)


def paint_covers(canvas: Canvas, ids: np.ndarray, covers: list[Cover]) -> None:
    """Paint all ground; `ids` uint8 (S, S) is the index of the cover of each image pixel."""
    rng = canvas.rng
    size, cell = canvas.size, 1 / canvas.gsd
    x, y = canvas.grid()
    patches = 0.8 * fractal(rng, size, 30 * cell, 4) + 0.3 * noise(rng, size, 3 * cell)
    share = np.clip(0.5 + 0.3 * patches, 0, 1)[..., None]
    columns = [np.array(c, np.float32) for c in zip(*covers, strict=True)]
    material, light, dark, angle, period, strength, square, tracks = (
        np.take(c, ids, axis=0) for c in columns
    )
    across = -np.sin(angle) * x + np.cos(angle) * y + 0.15 * period * noise(rng, size, 25 * cell)
    wave = np.sin(2 * np.pi / period * across)
    wave = (1 - square) * wave + square * np.tanh(4 * wave)
    rows = strength * wave * (0.75 + 0.35 * noise(rng, size, 12 * cell))
    lane = np.abs(across / 18.0 % 1 - 0.5) * 18.0
    pair = np.clip(1.5 - np.abs(lane - 0.9) / max(0.45, 0.6 * canvas.gsd), 0, 1)
    color = (light * share + dark * (1 - share)) * (1 + rows - tracks * pair)[..., None]
    full = (2 * size, 2 * size)
    canvas.color[:] = cv2.resize(np.clip(color, 0, 255).astype(np.uint8), full)
    canvas.material[:] = cv2.resize(material.astype(np.uint8), full, interpolation=cv2.INTER_NEAREST)


def lay_parcels(canvas: Canvas, frame: Frame, side: float, crops: float = 0.7) -> list[Rect]:
    """Cover the scene with parcels of about `side` metres, a share `crops` of them cultivated."""
    rng, palette = canvas.rng, canvas.palette
    reach = canvas.reach + 20
    rects = split(rng, (-reach, -reach, reach, reach), max(side, reach / 6))[:255]
    ids = np.zeros((canvas.size, canvas.size), np.uint8)
    covers = []
    for index, rect in enumerate(rects):
        outline = canvas.image_pixels(frame.world(span(*rect, steps=8)))
        cv2.fillPoly(ids, [np.round(outline).astype(np.int32)], index)
        cultivated = rng.random() < crops
        covers.append(
            crop_cover(rng, palette, frame.angle, canvas.gsd)
            if cultivated
            else grass_cover(rng, palette, frame.angle)
        )
    paint_covers(canvas, ids, covers)
    return rects


def lay_lawn(canvas: Canvas, angle: float, mown: float = 0.3) -> None:
    """Cover the scene with grass in two shades that meet along an irregular border."""
    rng, palette = canvas.rng, canvas.palette
    border = fractal(rng, canvas.size, 60 / canvas.gsd, 4) > rng.uniform(0.2, 1.5)
    covers = [grass_cover(rng, palette, angle, mown), grass_cover(rng, palette, angle, mown / 2)]
    paint_covers(canvas, border.astype(np.uint8), covers)


def border_parcels(canvas: Canvas, frame: Frame, rects: list[Rect]) -> None:
    """Draw grass margins, farm tracks and hedges along some of the parcel borders."""
    rng, palette = canvas.rng, canvas.palette
    for u0, v0, u1, v1 in rects:
        for start, end in (((u0, v0), (u1, v0)), ((u0, v0), (u0, v1))):
            line = frame.world(np.linspace(start, end, 16))
            if not canvas.visible(line):
                continue
            kind = rng.random()
            margin = mix(palette.meadow(rng), palette.crop(rng), 0.3) * rng.uniform(0.75, 1.1)
            if kind < 0.75:
                canvas.stroke(line, rng.uniform(0.6, 2.5), Material.GRASS, margin)
            if kind < 0.16:
                farm_track(canvas, line)
            elif kind < 0.38:
                tree_line(canvas, line)


def farm_track(canvas: Canvas, line: np.ndarray) -> None:
    """Draw a dirt track with a green middle; it ends where it meets water."""
    rng, palette = canvas.rng, canvas.palette
    wet = np.flatnonzero(canvas.material_at(line) == Material.WATER)
    line = line[: wet[0]] if len(wet) else line
    if len(line) < 3:
        return
    color = palette.dirt * rng.uniform(0.9, 1.1)
    canvas.stroke(line, rng.uniform(4.0, 6.0), Material.GRASS, palette.meadow(rng))
    canvas.stroke(line, rng.uniform(2.6, 3.4), Material.DIRT, color)
    canvas.trace(line, 0.8, mix(color, palette.grass, 0.5), color)


def tree_line(canvas: Canvas, line: np.ndarray) -> None:
    """Plant a row of trees or a hedge with gaps along a polyline."""
    rng, palette = canvas.rng, canvas.palette
    radius = rng.uniform(1.3, 3.8)
    positions = np.arange(0, length(line), radius * rng.uniform(1.0, 2.2))
    points, _ = walk(line, positions + rng.normal(0, 0.4 * radius, len(positions)))
    keep = noise(rng, 16, 4)[0][np.linspace(0, 15, len(points)).astype(int)] > -0.6
    for x, y in points[keep] + rng.normal(0, 0.25 * radius, (int(keep.sum()), 2)):
        r = radius * rng.uniform(0.7, 1.3)
        canvas.grow(x, y, r, 2.0 * r + 1, palette.tree(rng))


def scatter_trees(canvas: Canvas, count: int) -> None:
    """Plant single trees and small clumps anywhere in the scene."""
    rng, palette = canvas.rng, canvas.palette
    for _ in range(count):
        x, y = rng.uniform(-canvas.half, canvas.half, 2)
        radius = rng.uniform(1.5, 4.5)
        for _ in range(rng.choice([1, 1, 1, 2, 4, 7])):
            r = radius * rng.uniform(0.6, 1.2)
            canvas.grow(x, y, r, 2.2 * r + 1, palette.tree(rng))
            x, y = x + rng.normal(0, 1.6 * radius), y + rng.normal(0, 1.6 * radius)


def grow_forest(canvas: Canvas, share: float) -> None:
    """Turn about a `share` of the natural ground into forest floor with irregular borders."""
    rng, palette = canvas.rng, canvas.palette
    field = fractal(rng, canvas.size, max(40 / canvas.gsd, canvas.size / 4), 5)
    mask = (cv2.resize(field, None, fx=2, fy=2) > np.quantile(field[::8, ::8], 1 - share)).astype(np.uint8)
    mask *= is_one_of(canvas.material, NATURAL)
    canvas.flood(mask, Material.FLOOR, floor_color(palette))


def floor_color(palette: Palette) -> np.ndarray:
    """Colour of the ground between trees of a forest."""
    return mix(palette.species.mean(0) * 0.75, palette.dirt * 0.7, 0.35)


def dot_bales(canvas: Canvas) -> None:
    """Lay hay bales on part of a field: bright dots that are not vehicles."""
    rng = canvas.rng
    color = np.array((206, 190, 144)) * rng.uniform(0.8, 1.1)
    cx, cy = rng.uniform(-canvas.half, canvas.half, 2)
    for x, y in rng.normal((cx, cy), 0.35 * canvas.half, (rng.integers(8, 22), 2)):
        spot = np.array([(x, y)])
        if canvas.material_at(spot)[0] == Material.CROP:
            canvas.fill(blob(rng, x, y, 0.9, 0.05, 10), Material.CROP, color, 1.4)
