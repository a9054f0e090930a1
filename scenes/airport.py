"""Airports: a runway, a taxiway, an apron with parked planes, a terminal or hangars."""

import numpy as np

from scenes import ground, roads
from scenes.buildings import flat_roof, hall
from scenes.canvas import Canvas
from scenes.classes import NATURAL, Material
from scenes.geometry import Frame, length, span, walk
from scenes.objects import plane
from scenes.palette import ROOFS, mix, pick

ON_GROUND = (Material.ASPHALT, Material.CONCRETE)


def airport(canvas: Canvas) -> None:
    """Compose an airport along a frame: runway at negative v, apron at v > 0, buildings behind it."""
    rng = canvas.rng
    small = canvas.half < 55 or rng.random() < 0.3
    scale = 0.45 if small else 1.0
    angle = rng.uniform(0, 2 * np.pi)
    view = -rng.uniform(-30, 75) * scale
    frame = Frame(angle=angle).moved(0.0, view)
    ground.lay_lawn(canvas, angle, mown=0.8)
    if rng.random() < 0.4:
        ground.grow_forest(canvas, 0.08)
    _runway(canvas, frame, -105 * scale, 42 * scale)
    _taxiways(canvas, frame, scale)
    depth = rng.uniform(75, 95) * scale if not small else rng.uniform(40, 52)
    _apron(canvas, frame, depth)
    _buildings(canvas, frame, depth, small)
    if small:
        _small_stands(canvas, frame, depth)
    else:
        _stands(canvas, frame, depth)
    _rolling(canvas, frame, scale)
    ground.scatter_trees(canvas, 4)


def _runway(canvas: Canvas, frame: Frame, v: float, width: float) -> None:
    rng, palette = canvas.rng, canvas.palette
    reach = canvas.reach + 80
    color = palette.asphalt * rng.uniform(0.95, 1.15)
    end = rng.uniform(-0.8, 0.6) * canvas.half if rng.random() < 0.5 else -reach
    line = frame.world(np.array([(end, v), (reach, v)]))
    canvas.fill(
        frame.world(span(end - 12, v - width / 2 - 4, reach, v + width / 2 + 4)),
        Material.ASPHALT,
        color * 0.92,
    )
    canvas.fill(frame.world(span(end, v - width / 2, reach, v + width / 2)), Material.ASPHALT, color)
    for side in (-0.47, 0.47):
        canvas.trace(
            frame.world(np.array([(end, v + side * width), (reach, v + side * width)])),
            0.9,
            roads.PAINT,
            color,
        )
    for start in np.arange(30, length(line), 50 * width / 42):
        dash, _ = walk(line, np.array([start, start + 26 * width / 42]))
        canvas.trace(dash, 0.9, roads.PAINT, color)
    for stripe in np.linspace(-0.4, 0.4, 12):
        bar = np.array([(end + 6, v + stripe * width), (end + 6 + 0.7 * width, v + stripe * width)])
        canvas.trace(frame.world(bar), 1.6 * width / 42, roads.PAINT, color)
    for _ in range(14):  # rubber of landing planes
        start, side = end + rng.uniform(30, 150), v + rng.normal(0, 0.09) * width
        canvas.trace(
            frame.world(np.array([(start, side), (start + rng.uniform(30, 120), side)])),
            0.7,
            color * 0.8,
            color,
        )


def _taxiways(canvas: Canvas, frame: Frame, scale: float) -> None:
    rng, palette = canvas.rng, canvas.palette
    color, reach = mix(palette.asphalt, palette.concrete, rng.choice([0.0, 0.6])), canvas.reach + 80
    lines = [np.array([(-reach, -22 * scale), (reach, -22 * scale)])]
    for u in np.arange(-reach, reach, rng.uniform(90, 180)):
        lean = rng.choice([0, 0, 40]) * scale
        lines.append(np.array([(u, -22 * scale), (u + lean, -105 * scale)]))
        lines.append(np.array([(u + 20, -22 * scale), (u + 20, 4)]))
    for line in lines:
        canvas.stroke(frame.world(line), 17 * scale, Material.ASPHALT, color)
    for line in lines:
        canvas.trace(frame.world(line), 0.5, roads.YELLOW, color)


def _apron(canvas: Canvas, frame: Frame, depth: float) -> None:
    rng, palette = canvas.rng, canvas.palette
    color, reach = palette.concrete * rng.uniform(0.88, 1.06), canvas.reach + 40
    area = (-reach, 0.0, reach, depth)
    canvas.fill(frame.world(span(*area)), Material.CONCRETE, color)
    roads.joints(canvas, frame, (-canvas.reach, 0, canvas.reach, depth), 7.5, color)
    for _ in range(30):  # oil and repairs
        u, v = rng.uniform(-canvas.reach, canvas.reach), rng.uniform(2, depth - 8)
        patch = frame.world(span(u, v, u + rng.uniform(2, 7.5), v + rng.uniform(2, 7.5)))
        canvas.paint(patch, color * rng.uniform(0.86, 1.06))
    canvas.trace(frame.world(np.array([(-reach, 6.0), (reach, 6.0)])), 0.5, roads.YELLOW, color)


def _buildings(canvas: Canvas, frame: Frame, depth: float, small: bool) -> None:
    rng, palette = canvas.rng, canvas.palette
    reach = canvas.reach
    canvas.fill(frame.world(span(-reach, depth, reach, depth + 60)), Material.ASPHALT, palette.asphalt * 1.05)
    u = -reach - rng.uniform(0, 40)
    while u < reach:
        long, deep = (rng.uniform(18, 34), 18.0) if small else (rng.uniform(50, 120), rng.uniform(22, 30))
        pose = frame.pose(u + long / 2, depth + 3 + deep / 2)
        if small or rng.random() < 0.4:
            hall(canvas, pose, (long, deep))
        else:
            flat_roof(canvas, pose, (long, deep), pick(rng, ROOFS), rng.uniform(9, 15))
        u += long + rng.uniform(6, 22)
    roads.car_park(canvas, frame, (-reach, depth + 36, reach, depth + 56), rng.uniform(0.3, 0.9))
    line = frame.world(np.array([(-reach, depth + 66), (reach, depth + 66)]))
    roads.road(canvas, line, 8.0)


def _stands(canvas: Canvas, frame: Frame, depth: float) -> None:
    """Airliners nose in towards the terminal, with service vehicles around them."""
    rng = canvas.rng
    size = rng.uniform(32, 62)
    pitch = size * 1.06 + 6
    for u in np.arange(-canvas.reach - rng.uniform(0, pitch), canvas.reach, pitch):
        lead = frame.world(np.array([(u, 6.0), (u, depth - 8)]))
        canvas.trace(lead, 0.4, roads.YELLOW, canvas.color[0, 0])
        long = size * rng.uniform(0.8, 1.0)
        if rng.random() < 0.75:
            pose = frame.pose(u, depth - 9 - long / 2, np.pi / 2 + rng.normal(0, 0.015))
            plane(canvas, pose, long, ON_GROUND)
        for _ in range(rng.integers(0, 5)):
            spot = frame.pose(
                u + rng.uniform(-0.5, 0.5) * pitch,
                depth - rng.uniform(3, long),
                rng.choice([0, 1.57]) + rng.normal(0, 0.1),
            )
            canvas.park(*spot, "any")


def _small_stands(canvas: Canvas, frame: Frame, depth: float) -> None:
    """Two rows of light aircraft or business jets, tails together; some on the grass."""
    rng = canvas.rng
    size = rng.choice([rng.uniform(7.5, 11), rng.uniform(15.5, 22)])
    pitch = 1.3 * size + 2
    for v, turn in ((depth * 0.36, -np.pi / 2), (depth * 0.36 + 1.15 * size, np.pi / 2), (-24.0, -np.pi / 2)):
        share = rng.uniform(0.3, 0.9) if v > 0 else rng.choice([0.0, 0.4])
        for u in np.arange(-canvas.reach, canvas.reach, pitch):
            if rng.random() < share:
                pose = frame.pose(u, v, turn + rng.normal(0, 0.06))
                plane(canvas, pose, size * rng.uniform(0.85, 1.05), (*ON_GROUND, *NATURAL[:2]))
    for u in np.arange(-canvas.reach, canvas.reach, 16.0):
        if rng.random() < 0.4:
            canvas.park(*frame.pose(u, depth - 3.5, rng.normal(0, 0.1)), "car")


def _rolling(canvas: Canvas, frame: Frame, scale: float) -> None:
    """A plane on the taxiway or the runway."""
    rng = canvas.rng
    for v in (-22 * scale, -105 * scale):
        if rng.random() < 0.5:
            u = rng.uniform(-0.9, 0.9) * canvas.half
            plane(canvas, frame.pose(u, v, rng.choice([0, np.pi])), rng.uniform(30, 50) * scale, ON_GROUND)
