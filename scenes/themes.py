"""Themes of the scenes: one function per theme composes ground, water, roads and buildings."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scenes import ground, roads, water
from scenes.airport import airport
from scenes.buildings import house
from scenes.canvas import Canvas
from scenes.classes import PAVED, Material
from scenes.geometry import Frame, Pose, blob, curve, length, offset, walk
from scenes.harbour import harbour
from scenes.objects import ship
from scenes.palette import mix
from scenes.town import Town


class Theme(NamedTuple):
    """How to compose a scene and the range of its ground resolution in metres per pixel."""

    compose: Callable[[Canvas], None]
    gsd: tuple[float, float]


def rural(canvas: Canvas) -> None:
    """Parcels with crop rows, hedges and tracks, a country road and a farm."""
    rng = canvas.rng
    frame = _frame(canvas, bend=6)
    rects = ground.lay_parcels(canvas, frame, rng.uniform(45, 130), rng.uniform(0.5, 0.95))
    if rng.random() < 0.45:
        ground.grow_forest(canvas, rng.uniform(0.08, 0.25))
    ground.border_parcels(canvas, frame, rects)
    across = rng.uniform(0, np.pi)
    if rng.random() < 0.3:
        water.river(canvas, rng.uniform(4, 16), across + np.pi / 2 + rng.uniform(-0.5, 0.5))
    if rng.random() < 0.85:
        _country_road(canvas, across)
    if rng.random() < 0.35:
        _pond(canvas, rng.uniform(8, 26))
    water.deepen(canvas)
    if rng.random() < 0.75:
        _farm(canvas, frame.angle)
    if rng.random() < 0.3:
        ground.dot_bales(canvas)
    ground.scatter_trees(canvas, int(rng.integers(0, 14)))


def suburban(canvas: Canvas) -> None:
    """Streets with houses, flats, halls and parks."""
    rng = canvas.rng
    frame = _frame(canvas, bend=rng.uniform(0, 9))
    ground.lay_lawn(canvas, frame.angle)
    if rng.random() < 0.15:
        _pond(canvas, rng.uniform(5, 14))
    water.deepen(canvas)
    reach = canvas.reach + 110
    mixtures = (
        (0.85, 0.05, 0.02, 0.08),
        (0.45, 0.25, 0.2, 0.1),
        (0.1, 0.25, 0.6, 0.05),
        (0.7, 0.1, 0.1, 0.1),
    )
    Town(canvas, frame, (-reach, -reach, reach, reach)).build(mixtures[rng.integers(4)])
    ground.scatter_trees(canvas, int(rng.integers(0, 10)))


def forest(canvas: Canvas) -> None:
    """Woods with clearings, a river or a lake and a track."""
    rng = canvas.rng
    ground.lay_lawn(canvas, rng.uniform(0, np.pi), mown=0.1)
    ground.grow_forest(canvas, rng.uniform(0.35, 0.92))
    kind, across, line = rng.random(), rng.uniform(0, np.pi), None
    if kind < 0.65:
        along = across + np.pi / 2 + rng.uniform(-0.5, 0.5)
        line = water.river(canvas, rng.uniform(7, max(9, 0.5 * canvas.half)), along)
    elif kind < 0.9:
        _pond(canvas, rng.uniform(0.25, 0.7) * canvas.half)
    water.deepen(canvas)
    if rng.random() < 0.4 and not 0.65 <= kind < 0.9:
        _country_road(canvas, across)
    elif rng.random() < 0.7:
        reach = canvas.reach
        track = curve(rng, (-reach, 0), (reach, 0), 0.2 * canvas.half)
        ground.farm_track(canvas, Frame(_point(canvas), across).world(track))
    if rng.random() < 0.35:
        _farm(canvas, rng.uniform(0, np.pi))
    if line is not None:
        _river_traffic(canvas, line)
    ground.scatter_trees(canvas, 12)


def mixed(canvas: Canvas) -> None:
    """The edge of a town: parcels and woods on one side, streets on the other, often a river between."""
    rng = canvas.rng
    frame = _frame(canvas, bend=rng.uniform(0, 6), share=0.4)
    rects = ground.lay_parcels(canvas, frame, rng.uniform(50, 110))
    ground.border_parcels(canvas, frame, rects)
    ground.grow_forest(canvas, rng.uniform(0.05, 0.3))
    line = None
    if rng.random() < 0.6:
        width = rng.uniform(8, 30)
        bank = frame.moved(0, -0.8 * width - 14)
        line = water.river(canvas, width, bank.angle, bank.origin)
    water.deepen(canvas)
    reach = canvas.reach + 110
    away = frame.moved(0, 0, rng.normal(-np.pi / 2, 0.2)).world(curve(rng, (-60, 0), (reach, 0), 8))
    if rng.random() < 0.6:
        roads.road(canvas, away, rng.uniform(7, 11))
    else:
        ground.farm_track(canvas, away)
    Town(canvas, frame, (-reach, 0, reach, 2 * reach)).build()
    if line is not None:
        _river_traffic(canvas, line)
    ground.scatter_trees(canvas, 10)


THEMES: dict[str, Theme] = {
    "rural": Theme(rural, (0.3, 1.0)),
    "suburban": Theme(suburban, (0.2, 0.6)),
    "harbour": Theme(harbour, (0.25, 0.9)),
    "airport": Theme(airport, (0.3, 0.9)),
    "forest": Theme(forest, (0.25, 0.9)),
    "mixed": Theme(mixed, (0.3, 0.9)),
}


def _frame(canvas: Canvas, bend: float, share: float = 0.7) -> Frame:
    rng = canvas.rng
    return Frame(
        _point(canvas, share), rng.uniform(0, np.pi), bend, rng.uniform(150, 320), rng.uniform(0, 6.3)
    )


def _point(canvas: Canvas, share: float = 0.7) -> tuple[float, float]:
    rng = canvas.rng
    x, y = rng.uniform(-share, share, 2) * canvas.half
    return float(x), float(y)


def _site(canvas: Canvas, radius: float, avoid: tuple[Material, ...]) -> tuple[float, float] | None:
    """Find a point with none of the materials `avoid` within `radius` metres; None if there is hardly any."""
    rng = canvas.rng
    ring = np.concatenate([blob(rng, 0, 0, share * radius, 0.0, 12) for share in (0.01, 0.5, 1.0)])
    for _ in range(12):
        point = _point(canvas, 0.85)
        if not {int(m) for m in avoid} & set(canvas.material_at(ring + point).tolist()):
            return point
    return None


def _pond(canvas: Canvas, radius: float) -> None:
    """Draw a pond or lake that spares the roads."""
    point = _site(canvas, 1.2 * radius, (*PAVED, Material.WATER))
    if point:
        water.lake(canvas, *point, radius)


def _country_road(canvas: Canvas, angle: float) -> None:
    """Draw a road that runs about along `angle`, at times with an avenue or a branching track."""
    rng = canvas.rng
    frame, reach = Frame(_point(canvas, 0.5), angle), canvas.reach + 10
    line = frame.world(curve(rng, (-reach, 0), (reach, 0), rng.uniform(0, 0.25) * canvas.half))
    if rng.random() < 0.5:
        start = walk(line, np.array([length(line) * rng.uniform(0.35, 0.65)]))[0][0]
        away = frame.angle + rng.choice([-1, 1]) * rng.uniform(1.0, 1.6)
        branch = Frame(start, away).world(curve(rng, (0, 0), (reach, 0), 0.1 * canvas.half))
        ground.farm_track(canvas, branch + (start - branch[0]))
    roads.road(canvas, line, rng.uniform(5.5, 12))
    if rng.random() < 0.4:
        for side in (-1, 1):
            ground.tree_line(canvas, offset(line, side * rng.uniform(8, 11)))


def _farm(canvas: Canvas, angle: float) -> None:
    """Draw a yard with a few houses and barns around it, machines and trees."""
    rng, palette = canvas.rng, canvas.palette
    point = _site(canvas, 26, (Material.WATER, Material.ASPHALT))
    if not point:
        return
    frame = Frame(point, angle)
    color = mix(palette.dirt, palette.concrete, rng.choice([0.0, rng.random()]))
    canvas.fill(frame.world(blob(rng, 0, 0, rng.uniform(11, 20), 0.3)), Material.DIRT, color)
    for index in range(rng.integers(2, 6)):
        turn = rng.uniform(0, 0.5) + index * 2 * np.pi / 5
        u, v = rng.uniform(13, 19) * np.array([np.cos(turn), np.sin(turn)])
        size = (rng.uniform(9, 22), rng.uniform(7, 12))
        house(canvas, frame.pose(u, v, rng.choice([0, np.pi / 2])), size)
    for _ in range(6):
        u, v, turn = rng.uniform((-9, -9, 0), (9, 9, 6.3))
        canvas.park(*frame.pose(u, v, turn), "any")
    for x, y in frame.world(rng.normal(0, 26, (9, 2))):
        canvas.grow(x, y, rng.uniform(1.5, 4), 7.0, palette.tree(rng))


def _river_traffic(canvas: Canvas, line: np.ndarray) -> None:
    """Send up to three boats along a river."""
    rng = canvas.rng
    for start in rng.uniform(0.2, 0.8, rng.integers(0, 4)) * length(line):
        ((x, y),), (heading,) = walk(offset(line, rng.uniform(-4, 4)), np.array([start]))
        pose = Pose(x, y, heading + rng.choice([0, np.pi]))
        ship(canvas, pose, rng.uniform(6, 22), wake=rng.random() < 0.6)
