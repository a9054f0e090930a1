"""Harbours and coasts: quays and piers with moored ships, marinas, beaches, ships under way."""

import numpy as np

from scenes import ground, roads, water
from scenes.buildings import hall, house
from scenes.canvas import Canvas
from scenes.classes import Material
from scenes.geometry import Frame, span
from scenes.objects import ship
from scenes.palette import mix
from scenes.town import Town


def harbour(canvas: Canvas) -> None:
    """Compose land at v > 0 and water at v < 0 of a frame, with a built or a natural shore."""
    rng = canvas.rng
    frame = Frame(angle=rng.uniform(0, 2 * np.pi))
    frame = frame.moved(0.0, rng.uniform(-0.1, 0.75) * canvas.half)
    kind = rng.choice(["quay", "quay", "marina", "beach"])
    if kind == "beach":
        _beach(canvas, frame)
    else:
        _built_shore(canvas, frame, marina=kind == "marina")
    for _ in range(rng.integers(2, 6)):
        u, v = rng.uniform(-1.2, 1.2) * canvas.half, -rng.uniform(0.25, 2.0) * canvas.half
        long = float(np.exp(rng.uniform(np.log(7), np.log(np.clip(0.8 * canvas.half, 9, 70)))))
        ship(canvas, frame.pose(u, v, rng.uniform(0, 6.3)), long, wake=rng.random() < 0.7, clear=12)


def _beach(canvas: Canvas, frame: Frame) -> None:
    rng = canvas.rng
    ground.lay_lawn(canvas, frame.angle, mown=0.1)
    ground.grow_forest(canvas, rng.uniform(0.1, 0.5))
    water.coast(canvas, frame)
    water.deepen(canvas)
    reach = canvas.reach
    roads.road(canvas, frame.world(np.linspace((-reach, 32), (reach, 36), 24)), rng.uniform(6, 9))
    for u in np.arange(-reach, reach, rng.uniform(18, 40)):
        if rng.random() < 0.7:
            house(canvas, frame.pose(u, rng.uniform(50, 56)), (rng.uniform(9, 16), rng.uniform(8, 11)))
    if rng.random() < 0.6:
        _pier(canvas, frame, rng.uniform(-0.4, 0.4) * canvas.half, rng.uniform(20, 45), 3.0)
    ground.scatter_trees(canvas, 20)


def _built_shore(canvas: Canvas, frame: Frame, marina: bool) -> None:
    rng, palette = canvas.rng, canvas.palette
    ground.lay_lawn(canvas, frame.angle)
    reach = 2 * canvas.reach
    canvas.fill(
        frame.world(np.array([(-reach, 0), (reach, 0), (reach, -reach), (-reach, -reach)])),
        Material.WATER,
        palette.water,
    )
    water.deepen(canvas)
    apron = rng.uniform(8, 16) if marina else rng.uniform(14, 30)
    color = palette.concrete * rng.uniform(0.85, 1.05)
    canvas.fill(frame.world(span(-reach, 0, reach, apron)), Material.CONCRETE, color, 1.5)
    canvas.trace(frame.world(np.array([(-reach, 0.5), (reach, 0.5)])), 0.9, color * 0.72, color)
    if not marina:
        roads.joints(canvas, frame, (-canvas.reach, 1, canvas.reach, apron), 12.0, color)
    _waterfront(canvas, frame, apron)
    _piers(canvas, frame, marina)


def _waterfront(canvas: Canvas, frame: Frame, apron: float) -> None:
    """Halls behind the quay, a road and the town behind it."""
    rng, palette = canvas.rng, canvas.palette
    depth, reach = rng.uniform(18, 34), canvas.reach
    yard = palette.asphalt * rng.uniform(0.95, 1.15)
    canvas.fill(frame.world(span(-reach, apron, reach, apron + depth + 4)), Material.ASPHALT, yard)
    u = -reach - rng.uniform(0, 30)
    while u < reach:
        long = rng.uniform(24, 60)
        if rng.random() < 0.8:
            hall(canvas, frame.pose(u + long / 2, apron + 2 + depth / 2), (long, depth))
        else:
            roads.car_park(canvas, frame, (u, apron + 2, u + long, apron + depth), rng.uniform(0.2, 0.9))
        u += long + rng.uniform(4, 14)
    for u in np.arange(-reach, reach, 14.0):
        if rng.random() < 0.4:
            pose = frame.pose(
                u, rng.uniform(4, apron - 3), rng.choice([0, np.pi, 1.57]) + rng.normal(0, 0.05)
            )
            canvas.park(*pose, "any")
    if apron + depth < canvas.reach:
        rear = frame.moved(0.0, apron + depth + 10)
        Town(canvas, rear, (-reach - 60, 0, reach + 60, reach)).build((0.3, 0.25, 0.35, 0.1))


def _piers(canvas: Canvas, frame: Frame, marina: bool) -> None:
    rng = canvas.rng
    reach = canvas.reach
    width = rng.uniform(2.2, 3.2) if marina else rng.uniform(9, 20)
    pitch = rng.uniform(26, 36) if marina else rng.uniform(55, 110)
    length = rng.uniform(30, 60) if marina else rng.uniform(45, 100)
    starts = np.arange(-reach + rng.uniform(0, pitch), reach, pitch)
    for u in starts:
        _pier(canvas, frame, u, length * rng.uniform(0.8, 1.1), width)
    for u in starts:
        if marina:
            _berths(canvas, frame, u, length * 0.8, width)
        else:
            _moor(canvas, frame, u, length * 0.8, width)
    if not marina:
        for u in np.arange(-reach, reach, 30.0):
            long = rng.uniform(18, 50)
            ship(canvas, frame.pose(u, -0.11 * long - 1.2, rng.choice([0, np.pi])), long)


def _pier(canvas: Canvas, frame: Frame, u: float, length: float, width: float) -> None:
    rng, palette = canvas.rng, canvas.palette
    wood = (
        mix(palette.dirt, palette.concrete, rng.random())
        if width < 5
        else palette.concrete * rng.uniform(0.85, 1.0)
    )
    canvas.fill(frame.world(span(u - width / 2, -length, u + width / 2, 1.5)), Material.CONCRETE, wood, 1.5)
    if width > 8:
        for v in np.arange(-length + 6, -4, 11.0):
            if rng.random() < 0.35:
                canvas.park(*frame.pose(u + rng.uniform(-0.2, 0.2) * width, v, np.pi / 2), "any")


def _berths(canvas: Canvas, frame: Frame, u: float, length: float, width: float) -> None:
    """Boats side by side at right angles to a finger pier."""
    rng = canvas.rng
    for side in (-1, 1):
        size = rng.uniform(7, 12)
        for v in np.arange(-length, -5, 0.45 * size):
            if rng.random() < 0.8:
                long = size * rng.uniform(0.7, 1.05)
                bow = rng.choice([0, np.pi])
                pose = frame.pose(
                    u + side * (width / 2 + long / 2 + 0.8 + 0.6 * canvas.gsd), v, bow + rng.normal(0, 0.03)
                )
                ship(canvas, pose, long)


def _moor(canvas: Canvas, frame: Frame, u: float, length: float, width: float) -> None:
    """Ships alongside a pier."""
    rng = canvas.rng
    for side in (-1, 1):
        if rng.random() < 0.85:
            long = min(length * rng.uniform(0.5, 0.95), 95)
            gap = width / 2 + 0.115 * long + 1.0
            turn = np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.01)
            ship(canvas, frame.pose(u + side * gap, -length / 2 - 4, turn), long)
