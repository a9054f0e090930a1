"""Buildings: footprints with gabled, hipped, flat or shed roofs, lit face by face."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .canvas import Canvas
from .classes import Material
from .geometry import Pose, at, box
from .palette import ROOFS, pick


class Sun(NamedTuple):
    """Where the light comes from: `direction` unit vector (2,) towards the sun, `slope` tan(elevation)."""

    direction: np.ndarray
    slope: float


def face_shade(sun: Sun, downhill: np.ndarray, pitch: float) -> float:
    """Sunlight on a roof face relative to flat ground; `downhill` (2,) points down the face, `pitch` radians."""
    light = np.cos(pitch) + np.sin(pitch) * float(downhill @ sun.direction) / sun.slope
    return float(np.clip(light, 0.35, 1.5))


def house(canvas: Canvas, rng: np.random.Generator, sun: Sun, pose: Pose, size: tuple[float, float]) -> None:
    """Draw a house of `size` (along, across) metres, at times with a wing at a right angle."""
    color, pitch = pick(rng, ROOFS, 9), np.radians(rng.uniform(22, 42))
    style = rng.choice(["gable", "gable", "hip", "flat"])
    storey = rng.uniform(3, 6.5)
    long, wide = size
    if rng.random() < 0.4:
        reach, side = 0.55 * wide + rng.uniform(1, 3), rng.choice([-1, 1])
        wing_wide = min(0.8 * wide, 0.5 * long)
        x, y = (long - wing_wide) / 2 * rng.choice([-1, 1]), side * reach / 2
        turned = Pose(*at(pose, np.array([(x, y)]))[0], pose.angle + side * np.pi / 2)
        roof(canvas, rng, sun, turned, (reach + wide * 0.2, wing_wide), style, color, pitch, storey)
    roof(canvas, rng, sun, pose, size, style, color, pitch, storey)
    if rng.random() < 0.5:
        chimney = at(pose, box(0.9, 0.9, rng.uniform(-0.3, 0.3) * long, 0.12 * wide))
        canvas.fill(chimney, Material.ROOF, color * 0.7, storey + 0.3 * wide)


def roof(
    canvas: Canvas,
    rng: np.random.Generator,
    sun: Sun,
    pose: Pose,
    size: tuple[float, float],
    style: str,
    color: np.ndarray,
    pitch: float,
    storey: float,
) -> None:
    """Draw one roof; `storey` is the height of the eaves, the ridge runs along the first side of `size`."""
    long, wide = size
    if style == "flat":
        flat_roof(canvas, rng, pose, size, color, storey)
        return
    ridge = long / 2 - (wide / 2 if style == "hip" else 0.0)
    a, b = (-ridge, 0.0), (ridge, 0.0)
    corners = [tuple(c) for c in box(long, wide)]
    faces = [((corners[0], corners[1], b, a), (0, -1)), ((corners[2], corners[3], a, b), (0, 1))]
    if style == "hip":
        faces += [((corners[1], corners[2], b), (1, 0)), ((corners[3], corners[0], a), (-1, 0))]
    height = storey + 0.3 * wide * np.tan(pitch)
    for outline, downhill in faces:
        world = at(Pose(0, 0, pose.angle), np.array(downhill, float))
        canvas.fill(at(pose, np.array(outline)), Material.ROOF, color, height, face_shade(sun, world, pitch))
    canvas.trace(at(pose, np.array([a, b])), 0.35, color * 1.2, color)


def flat_roof(
    canvas: Canvas, rng: np.random.Generator, pose: Pose, size: tuple[float, float], color: np.ndarray, height: float
) -> None:
    """Draw a flat roof with parapet, sections, skylights and machinery."""
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


def hall(canvas: Canvas, rng: np.random.Generator, sun: Sun, pose: Pose, size: tuple[float, float]) -> None:
    """Draw a large hall: one flat roof or a row of low gables."""
    color, height = pick(rng, ROOFS, 9), rng.uniform(6, 13)
    bays = 0 if rng.random() < 0.5 else max(1, round(size[1] / rng.uniform(10, 22)))
    if bays == 0:
        flat_roof(canvas, rng, pose, size, color, height)
        return
    wide = size[1] / bays
    for bay in range(bays):
        x, y = at(pose, np.array([(0.0, (bay + 0.5) * wide - size[1] / 2)]))[0]
        roof(canvas, rng, sun, Pose(x, y, pose.angle), (size[0], wide), "gable", color, np.radians(12), height)
