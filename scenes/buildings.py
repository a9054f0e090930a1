"""Buildings: footprints with gabled, hipped or flat roofs, lit face by face."""

from typing import NamedTuple

import numpy as np

from scenes.canvas import Canvas, Sun
from scenes.classes import Material
from scenes.geometry import Frame, Pose, at, box, rotate
from scenes.palette import ROOFS, pick


class Look(NamedTuple):
    """A roof: style (`gable`, `hip` or `flat`), RGB, slope in radians, height of the eaves in metres."""

    style: str
    color: np.ndarray
    pitch: float
    eaves: float


def face_shade(sun: Sun, downhill: np.ndarray, pitch: float) -> float:
    """Sunlight on a roof face relative to flat ground; `downhill` (2,) points down the face."""
    light = np.cos(pitch) + np.sin(pitch) * float(downhill @ sun.direction) / sun.slope
    return float(np.clip(light, 0.35, 1.5))


def house(canvas: Canvas, pose: Pose, size: tuple[float, float]) -> None:
    """Draw a house of `size` (along, across) metres, at times with a wing at a right angle."""
    rng = canvas.rng
    color, pitch = pick(rng, ROOFS, 9), np.radians(rng.uniform(22, 42))
    look = Look(rng.choice(["gable", "gable", "hip", "flat"]), color, pitch, rng.uniform(3, 6.5))
    long, wide = size
    if rng.random() < 0.4:
        reach, side = 0.55 * wide + rng.uniform(1, 3), rng.choice([-1, 1])
        wing_wide = min(0.8 * wide, 0.5 * long)
        x, y = (long - wing_wide) / 2 * rng.choice([-1, 1]), side * reach / 2
        turned = Frame((pose.x, pose.y), pose.angle).pose(x, y, side * np.pi / 2)
        roof(canvas, turned, (reach + wide * 0.2, wing_wide), look)
    roof(canvas, pose, size, look)
    if rng.random() < 0.5:
        chimney = at(pose, box(0.9, 0.9, rng.uniform(-0.3, 0.3) * long, 0.12 * wide))
        canvas.fill(chimney, Material.ROOF, color * 0.7, look.eaves + 0.3 * wide)


def roof(canvas: Canvas, pose: Pose, size: tuple[float, float], look: Look) -> None:
    """Draw one roof; its ridge runs along the first side of `size`."""
    style, color, pitch, eaves = look
    long, wide = size
    if style == "flat":
        flat_roof(canvas, pose, size, color, eaves)
        return
    ridge = max(0.0, (long - wide) / 2) if style == "hip" else long / 2
    a, b = np.array([(-ridge, 0), (ridge, 0)])
    c0, c1, c2, c3 = box(long, wide)
    faces = [([c0, c1, b, a], (0, -1)), ([c2, c3, a, b], (0, 1))]
    if style == "hip":
        faces += [([c1, c2, b], (1, 0)), ([c3, c0, a], (-1, 0))]
    height = eaves + 0.3 * wide * np.tan(pitch)
    for outline, downhill in faces:
        shade = face_shade(canvas.sun, rotate(np.array(downhill), pose.angle), pitch)
        canvas.fill(at(pose, np.array(outline)), Material.ROOF, color, height, shade)
    canvas.trace(at(pose, np.array([a, b])), 0.35, color * 1.2, color)


def flat_roof(
    canvas: Canvas, pose: Pose, size: tuple[float, float], color: np.ndarray, height: float
) -> None:
    """Draw a flat roof with parapet, sections, skylights and machinery."""
    rng = canvas.rng
    long, wide = size
    canvas.fill(at(pose, box(long, wide)), Material.ROOF, color * rng.uniform(0.8, 1.1), height + 0.6)
    canvas.fill(at(pose, box(long - 0.8, wide - 0.8)), Material.ROOF, color, height)
    if long > 18:
        for u in np.arange(-long / 2, long / 2, rng.uniform(4, 9)):
            canvas.trace(at(pose, np.array([(u, -wide / 2), (u, wide / 2)])), 0.3, color * 0.88, color)
    for _ in range(int(rng.poisson(long * wide / 130))):
        x, y = rng.uniform(-0.42, 0.42, 2) * (long, wide)
        unit = np.clip(color * rng.choice([0.55, 0.75, 1.3]), 0, 235)
        part = at(pose, box(rng.uniform(0.9, 3.0), rng.uniform(0.9, 2.2), x, y))
        canvas.fill(part, Material.ROOF, unit, height + rng.uniform(0.5, 2.2))


def hall(canvas: Canvas, pose: Pose, size: tuple[float, float]) -> None:
    """Draw a large hall: one flat roof or a row of low gables."""
    rng = canvas.rng
    color, height = pick(rng, ROOFS, 9), rng.uniform(6, 13)
    bays = 0 if rng.random() < 0.5 else max(1, round(size[1] / rng.uniform(10, 22)))
    if bays == 0:
        flat_roof(canvas, pose, size, color, height)
        return
    wide, look = size[1] / bays, Look("gable", color, np.radians(12), height)
    for bay in range(bays):
        x, y = at(pose, np.array([(0.0, (bay + 0.5) * wide - size[1] / 2)]))[0]
        roof(canvas, Pose(x, y, pose.angle), (size[0], wide), look)
