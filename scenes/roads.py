"""Roads, streets and car parks: surfaces, markings and parked vehicles."""

import numpy as np

from scenes.canvas import Canvas
from scenes.classes import Material
from scenes.geometry import Frame, length, offset, rotate, span, walk
from scenes.palette import mix

PAINT = np.array((214, 212, 204))
YELLOW = np.array((206, 170, 72))


def road(canvas: Canvas, line: np.ndarray, width: float) -> None:
    """Draw a paved country road of `width` metres with verges, worn lanes, markings and traffic."""
    rng, palette = canvas.rng, canvas.palette
    color = palette.asphalt * rng.uniform(0.92, 1.08)
    verge = mix(palette.meadow(rng), palette.sand, rng.uniform(0.1, 0.8))
    canvas.stroke(line, width + rng.uniform(1.5, 5.0), Material.GRASS, verge)
    surface(canvas, line, width, color)
    markings(canvas, line, width, color, edges=rng.random() < 0.7)
    traffic(canvas, line, width, spacing=rng.uniform(18, 60))


def surface(canvas: Canvas, line: np.ndarray, width: float, color: np.ndarray) -> None:
    """Draw asphalt with wheel tracks and repair patches."""
    rng = canvas.rng
    canvas.stroke(line, width, Material.ASPHALT, color)
    wear = color * rng.uniform(0.9, 1.12)
    for side in (-0.33, -0.17, 0.17, 0.33):
        canvas.trace(offset(line, side * width), 0.7, wear, color)
    long = length(line)
    for start in rng.uniform(0, 0.7 * long, 4):
        points, _ = walk(line, start + np.linspace(0, min(rng.uniform(4, 25), 0.3 * long), 6))
        canvas.trace(offset(points, 0.25 * width), 0.42 * width, color * rng.uniform(0.86, 1.08), color)


def markings(canvas: Canvas, line: np.ndarray, width: float, color: np.ndarray, edges: bool) -> None:
    """Draw the dashed or solid centre line and, with `edges`, the lines along the sides."""
    rng = canvas.rng
    paint = mix(PAINT if rng.random() < 0.8 else YELLOW, color, rng.uniform(0.1, 0.4))
    dash, gap = (3.0, 4.5) if rng.random() < 0.75 else (100.0, 0.0)
    if dash > 10:
        canvas.trace(line, 0.22, paint, color)
    else:
        starts = np.arange(0, length(line) - dash, dash + gap)
        ends = walk(line, np.stack([starts, starts + dash], 1).ravel())[0].reshape(-1, 2, 2)
        for points in ends:
            canvas.trace(points, 0.22, paint, color)
    if edges:
        for side in (-0.44, 0.44):
            canvas.trace(offset(line, side * width), 0.18, paint, color)


def traffic(canvas: Canvas, line: np.ndarray, width: float, spacing: float) -> None:
    """Put vehicles on both lanes, on average `spacing` metres apart, driving on the right."""
    rng = canvas.rng
    for side in (-1, 1):
        gaps = rng.exponential(spacing, 40) + 9
        points, headings = walk(
            offset(line, 0.25 * width * side), np.cumsum(gaps)[np.cumsum(gaps) < length(line)]
        )
        for (x, y), heading in zip(points, headings, strict=True):
            turn = 0.0 if side > 0 else np.pi
            canvas.park(x, y, heading + turn + rng.normal(0, 0.02), "any")


def kerb_parking(canvas: Canvas, line: np.ndarray, width: float, share: float) -> None:
    """Park cars along both kerbs of a street; `share` of the spots are taken."""
    rng = canvas.rng
    for side in (-1, 1):
        positions = np.arange(4, length(line), 6.2)
        positions = positions[rng.random(len(positions)) < share]
        points, headings = walk(offset(line, (width / 2 - 1.15) * side), positions)
        for (x, y), heading in zip(points, headings, strict=True):
            turn = rng.choice([0, np.pi]) + rng.normal(0, 0.025)
            canvas.park(x, y, heading + turn, "car")


def zebra(
    canvas: Canvas, frame: Frame, u: float, v: float, angle: float, width: float, color: np.ndarray
) -> None:
    """Draw a pedestrian crossing over a street of `width` metres that runs along `angle` at (u, v)."""
    pose = frame.pose(u, v, angle)
    for across in np.arange(-width / 2 + 0.7, width / 2 - 0.4, 1.1):
        stripe = rotate(np.array([(-1.3, across), (1.3, across)]), pose.angle) + pose[:2]
        canvas.trace(stripe, 0.5, mix(PAINT, color, 0.25), color)


def car_park(canvas: Canvas, frame: Frame, rect: tuple[float, float, float, float], full: float) -> None:
    """Pave a rectangle of the frame and fill it with rows of marked bays, a share `full` of them taken."""
    rng, palette = canvas.rng, canvas.palette
    u0, v0, u1, v1 = rect
    color = palette.asphalt * rng.uniform(0.9, 1.15)
    canvas.fill(frame.world(span(u0, v0, u1, v1, 6)), Material.ASPHALT, color)
    row, module = 5.2, 16.6
    for base in np.arange(v0 + 0.6, v1 - row, module):
        for top, turn in ((base, np.pi / 2), (base + module - row - 0.4, -np.pi / 2)):
            if top + row > v1:
                continue
            taken = rng.beta(4 * full + 0.2, 4 * (1 - full) + 0.2)
            for u in np.arange(u0 + 1.5, u1 - 2.6, 2.7):
                canvas.trace(
                    frame.world(np.array([(u, top), (u, top + row)])), 0.14, mix(PAINT, color, 0.3), color
                )
                if rng.random() < taken:
                    angle = turn + rng.choice([0, np.pi]) + rng.normal(0, 0.03)
                    canvas.park(*frame.pose(u + 1.35, top + row / 2 + rng.normal(0, 0.2), angle), "car")


def joints(
    canvas: Canvas, frame: Frame, rect: tuple[float, float, float, float], step: float, color: np.ndarray
) -> None:
    """Draw the joints of concrete slabs, `step` metres apart, over a rectangle of the frame."""
    u0, v0, u1, v1 = rect
    dark = color * 0.8
    for u in np.arange(u0, u1, step):
        canvas.trace(frame.world(np.array([(u, v0), (u, v1)])), 0.25, dark, color)
    for v in np.arange(v0, v1, step):
        canvas.trace(frame.world(np.array([(u0, v), (u1, v)])), 0.25, dark, color)


def square(frame: Frame, u: float, v: float, side: float) -> np.ndarray:
    """Corners (16, 2) of a square area of the frame around (u, v), bent with it."""
    return frame.world(span(u - side / 2, v - side / 2, u + side / 2, v + side / 2, 4))
