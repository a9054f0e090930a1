"""What the scenes show: one function per theme, each composing ground, water, roads and buildings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import ground, roads, water
from .airport import airport
from .buildings import Sun, house
from .canvas import Canvas
from .classes import PAVED, Material
from .geometry import Frame, Pose, blob, curve, length, offset, walk
from .harbour import harbour
from .objects import ship
from .palette import Palette, mix
from .town import Town


class Theme(NamedTuple):
    """How to compose a scene and the range of its ground resolution in metres per pixel."""

    compose: Callable[[Canvas, np.random.Generator, Palette, Sun], None]
    gsd: tuple[float, float]


def rural(canvas: Canvas, rng: np.random.Generator, palette: Palette, sun: Sun) -> None:
    """Parcels with crop rows, hedges and tracks, a country road and a farm."""
    frame = _frame(canvas, rng, bend=6)
    rects = ground.lay_parcels(canvas, rng, palette, frame, rng.uniform(45, 130), rng.uniform(0.5, 0.95))
    if rng.random() < 0.45:
        ground.grow_forest(canvas, rng, palette, rng.uniform(0.08, 0.25))
    ground.border_parcels(canvas, rng, palette, frame, rects)
    across = rng.uniform(0, np.pi)
    if rng.random() < 0.3:
        water.river(canvas, rng, palette, rng.uniform(4, 16), across + np.pi / 2 + rng.uniform(-0.5, 0.5))
    if rng.random() < 0.85:
        _country_road(canvas, rng, palette, across)
    if rng.random() < 0.35:
        _pond(canvas, rng, palette, rng.uniform(8, 26))
    water.deepen(canvas, rng, palette)
    if rng.random() < 0.75:
        _farm(canvas, rng, palette, sun, frame.angle)
    if rng.random() < 0.3:
        ground.dot_bales(canvas, rng)
    ground.scatter_trees(canvas, rng, palette, int(rng.integers(0, 14)))


def suburban(canvas: Canvas, rng: np.random.Generator, palette: Palette, sun: Sun) -> None:
    """Streets with houses, flats, halls and parks."""
    frame = _frame(canvas, rng, bend=rng.uniform(0, 9))
    ground.lay_lawn(canvas, rng, palette, frame.angle)
    if rng.random() < 0.15:
        _pond(canvas, rng, palette, rng.uniform(5, 14))
    water.deepen(canvas, rng, palette)
    reach = canvas.reach + 110
    mixtures = ((0.85, 0.05, 0.02, 0.08), (0.45, 0.25, 0.2, 0.1), (0.1, 0.25, 0.6, 0.05), (0.7, 0.1, 0.1, 0.1))
    Town(canvas, rng, palette, sun, frame, (-reach, -reach, reach, reach)).build(mixtures[rng.integers(4)])
    ground.scatter_trees(canvas, rng, palette, int(rng.integers(0, 10)))


def forest(canvas: Canvas, rng: np.random.Generator, palette: Palette, sun: Sun) -> None:
    """Woods with clearings, a river or a lake and a track."""
    ground.lay_lawn(canvas, rng, palette, rng.uniform(0, np.pi), mown=0.1)
    ground.grow_forest(canvas, rng, palette, rng.uniform(0.35, 0.92))
    kind, across, line = rng.random(), rng.uniform(0, np.pi), None
    if kind < 0.65:
        along = across + np.pi / 2 + rng.uniform(-0.5, 0.5)
        line = water.river(canvas, rng, palette, rng.uniform(7, 0.5 * canvas.half), along)
    elif kind < 0.9:
        _pond(canvas, rng, palette, rng.uniform(0.25, 0.7) * canvas.half)
    water.deepen(canvas, rng, palette)
    if rng.random() < 0.4 and not 0.65 <= kind < 0.9:
        _country_road(canvas, rng, palette, across)
    elif rng.random() < 0.7:
        reach = canvas.reach
        track = curve(rng, (-reach, 0), (reach, 0), 0.2 * canvas.half)
        ground.farm_track(canvas, rng, palette, Frame(*_point(canvas, rng), across).world(track))
    if rng.random() < 0.35:
        _farm(canvas, rng, palette, sun, rng.uniform(0, np.pi))
    if line is not None:
        _river_traffic(canvas, rng, line)
    ground.scatter_trees(canvas, rng, palette, 12)


def mixed(canvas: Canvas, rng: np.random.Generator, palette: Palette, sun: Sun) -> None:
    """The edge of a town: parcels and woods on one side, streets on the other, often a river between."""
    frame = _frame(canvas, rng, bend=rng.uniform(0, 6))
    rects = ground.lay_parcels(canvas, rng, palette, frame, rng.uniform(50, 110))
    ground.border_parcels(canvas, rng, palette, frame, rects)
    ground.grow_forest(canvas, rng, palette, rng.uniform(0.05, 0.3))
    edge = frame.local(np.zeros((1, 2)))[0, 1] + rng.uniform(-0.4, 0.4) * canvas.half
    centre = frame.world(np.array([(frame.local(np.zeros((1, 2)))[0, 0], edge)]))[0]
    line = None
    if rng.random() < 0.6:
        width = rng.uniform(8, 30)
        away = np.array([np.sin(frame.angle), -np.cos(frame.angle)])
        bank = Frame(*(centre + (0.8 * width + 14) * away), frame.angle)
        line = water.river(canvas, rng, palette, width, bank.angle, (bank.x, bank.y))
    water.deepen(canvas, rng, palette)
    reach = canvas.reach + 110
    out = Frame(*centre, frame.angle - np.pi / 2 + rng.normal(0, 0.2)).world(curve(rng, (-60, 0), (reach, 0), 8))
    if rng.random() < 0.6:
        roads.road(canvas, rng, palette, out, rng.uniform(7, 11))
    else:
        ground.farm_track(canvas, rng, palette, out)
    Town(canvas, rng, palette, sun, frame, (-reach, edge, reach, edge + 2 * reach)).build()
    if line is not None:
        _river_traffic(canvas, rng, line)
    ground.scatter_trees(canvas, rng, palette, 10)


THEMES: dict[str, Theme] = {
    "rural": Theme(rural, (0.3, 1.0)),
    "suburban": Theme(suburban, (0.2, 0.6)),
    "harbour": Theme(harbour, (0.25, 0.9)),
    "airport": Theme(airport, (0.3, 0.9)),
    "forest": Theme(forest, (0.25, 0.9)),
    "mixed": Theme(mixed, (0.3, 0.9)),
}


def _frame(canvas: Canvas, rng: np.random.Generator, bend: float) -> Frame:
    x, y = _point(canvas, rng)
    return Frame(x, y, rng.uniform(0, np.pi), bend, rng.uniform(150, 320), rng.uniform(0, 6.3))


def _point(canvas: Canvas, rng: np.random.Generator, share: float = 0.7) -> tuple[float, float]:
    x, y = rng.uniform(-share, share, 2) * canvas.half
    return float(x), float(y)


def _site(
    canvas: Canvas, rng: np.random.Generator, radius: float, avoid: tuple[Material, ...]
) -> tuple[float, float] | None:
    """Find a point with none of the materials `avoid` within `radius` metres; None if there is hardly any."""
    ring = np.concatenate([blob(rng, 0, 0, share * radius, 0.0, 12) for share in (0.01, 0.5, 1.0)])
    for _ in range(12):
        point = _point(canvas, rng, 0.85)
        if not {int(m) for m in avoid} & set(canvas.material_at(ring + point).tolist()):
            return point
    return None


def _pond(canvas: Canvas, rng: np.random.Generator, palette: Palette, radius: float) -> None:
    """Draw a pond or lake that spares the roads."""
    point = _site(canvas, rng, 1.2 * radius, (*PAVED, Material.WATER))
    if point:
        water.lake(canvas, rng, palette, *point, radius)


def _country_road(canvas: Canvas, rng: np.random.Generator, palette: Palette, angle: float) -> None:
    """Draw a road that runs about along `angle`, at times with an avenue or a branching track."""
    frame, reach = Frame(*_point(canvas, rng, 0.5), angle), canvas.reach + 10
    line = frame.world(curve(rng, (-reach, 0), (reach, 0), rng.uniform(0, 0.25) * canvas.half))
    if rng.random() < 0.5:
        start = walk(line, np.array([length(line) * rng.uniform(0.35, 0.65)]))[0][0]
        away = frame.angle + rng.choice([-1, 1]) * rng.uniform(1.0, 1.6)
        branch = Frame(*start, away).world(curve(rng, (0, 0), (reach, 0), 0.1 * canvas.half))
        ground.farm_track(canvas, rng, palette, branch + (start - branch[0]))
    roads.road(canvas, rng, palette, line, rng.uniform(5.5, 12))
    if rng.random() < 0.4:
        for side in (-1, 1):
            ground.tree_line(canvas, rng, palette, offset(line, side * rng.uniform(8, 11)))


def _farm(canvas: Canvas, rng: np.random.Generator, palette: Palette, sun: Sun, angle: float) -> None:
    """Draw a yard with a few houses and barns around it, machines and trees."""
    point = _site(canvas, rng, 26, (Material.WATER, Material.ASPHALT))
    if not point:
        return
    frame = Frame(*point, angle)
    color = mix(palette.dirt, palette.concrete, rng.choice([0.0, rng.random()]))
    canvas.fill(frame.world(blob(rng, 0, 0, rng.uniform(11, 20), 0.3)), Material.DIRT, color)
    for index in range(rng.integers(2, 6)):
        turn = rng.uniform(0, 0.5) + index * 2 * np.pi / 5
        u, v = rng.uniform(13, 19) * np.array([np.cos(turn), np.sin(turn)])
        size = (rng.uniform(9, 22), rng.uniform(7, 12))
        house(canvas, rng, sun, frame.pose(u, v, rng.choice([0, np.pi / 2])), size)
    for _ in range(6):
        canvas.park(*frame.pose(*rng.uniform(-9, 9, 2), rng.uniform(0, 6.3)), "any")
    for x, y in frame.world(rng.normal(0, 26, (9, 2))):
        canvas.grow(x, y, rng.uniform(1.5, 4), 7.0, palette.tree(rng))


def _river_traffic(canvas: Canvas, rng: np.random.Generator, line: np.ndarray) -> None:
    """Send up to three boats along a river."""
    for start in rng.uniform(0.2, 0.8, rng.integers(0, 4)) * length(line):
        points, headings = walk(offset(line, rng.uniform(-4, 4)), np.array([start]))
        pose = Pose(*points[0], headings[0] + rng.choice([0, np.pi]))
        ship(canvas, rng, pose, rng.uniform(6, 22), wake=rng.random() < 0.6)
