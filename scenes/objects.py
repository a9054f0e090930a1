"""Vehicles, ships and planes: drawn from parts, each with its rotated box."""

from typing import NamedTuple

import numpy as np

from scenes.canvas import Canvas
from scenes.classes import PAVED, PLANE, SHIP, VEHICLE, Material
from scenes.geometry import Pose, at, box
from scenes.palette import CARS, DECKS, HULLS, JETS, mix, pick
from scenes.water import trail_wake

GLASS = np.array((46, 52, 58))
WHITE = np.array((216, 216, 212))
STERN = 0.85  # width of the stern, relative to the hull


class Part(NamedTuple):
    """A polygon (N, 2) of an object heading along x (metres), its colour and height (metres)."""

    outline: np.ndarray
    color: np.ndarray
    height: float


def place(
    canvas: Canvas,
    pose: Pose,
    parts: list[Part],
    material: Material,
    label: int,
    allowed: tuple[Material, ...],
    clear: float = 0.5,
) -> bool:
    """Draw an object and record its box, unless the ground within `clear` metres is not all `allowed`."""
    corners = np.concatenate([p.outline for p in parts])
    low, high = corners.min(0), corners.max(0)
    (x, y), (long, wide) = (low + high) / 2, high - low
    hull = at(pose, box(long, wide, x, y))
    if not canvas.visible(hull):
        return False
    probe = at(pose, (_PROBES * (long + clear, wide + clear)) / 2 + (x, y))
    if not {-1, *allowed}.issuperset(canvas.material_at(probe).tolist()):
        return False
    for part in parts:
        canvas.fill(at(pose, part.outline), material, part.color, part.height)
    cx, cy = canvas.image_pixels(hull.mean(0))
    canvas.boxes.append((cx, cy, long / canvas.gsd, wide / canvas.gsd, pose.angle, label))
    return True


_PROBES = np.array([(u, v) for u in (-1, -0.5, 0, 0.5, 1) for v in (-1, 0, 1)], float)


def vehicle(canvas: Canvas, pose: Pose, kind: str) -> bool:
    """Draw a car, van, lorry or bus on paved ground; `kind` is `car`, `truck` or `any`."""
    rng = canvas.rng
    big = kind == "truck" or (kind == "any" and rng.random() < 0.18)
    parts = _lorry(rng) if big else _car(rng)
    return place(canvas, pose, parts, Material.VEHICLE, VEHICLE, PAVED)


def _car(rng: np.random.Generator) -> list[Part]:
    van = rng.random() < 0.15
    long, wide = (rng.uniform(5.0, 6.2), 2.05) if van else (rng.uniform(3.9, 4.9), rng.uniform(1.72, 1.95))
    color, h = pick(rng, CARS, 6), 2.1 if van else 1.5
    body = _rounded(long, wide, 0.35)
    front, rear = (0.34, -0.49) if van else (rng.uniform(0.12, 0.2), rng.uniform(-0.42, -0.3))
    cabin = box(long * (front - rear), 0.86 * wide, long * (front + rear) / 2)
    top = box(long * (front - rear) - (0.9 if van else 1.5), 0.74 * wide, long * (front + rear) / 2 - 0.15)
    return [Part(body, color, 0.6 * h), Part(cabin, GLASS, h), Part(top, color * 1.06 + 6, h)]


def _lorry(rng: np.random.Generator) -> list[Part]:
    long, wide = rng.uniform(7, 15), 2.5
    color, load = pick(rng, CARS, 6), mix(WHITE, pick(rng, CARS), rng.choice([0.0, 0.7]))
    if rng.random() < 0.25:  # a bus
        hatches = [Part(box(1.1, 1.1, x * long), color * 0.8, 3.2) for x in (-0.25, 0.25)]
        glass = Part(box(0.7, 0.86 * wide, long / 2 - 0.5), GLASS, 3.0)
        return [Part(_rounded(long, wide, 0.3), color * 1.05 + 8, 3.1), glass, *hatches]
    cab = Part(_rounded(2.2, wide, 0.3) + (long / 2 - 1.1, 0), color, 2.8)
    glass = Part(box(0.6, 0.8 * wide, long / 2 - 0.55), GLASS, 2.8)
    return [cab, glass, Part(box(long - 2.7, wide, -1.35), load, 3.6)]


def _rounded(long: float, wide: float, cut: float) -> np.ndarray:
    """Rectangle (8, 2) with its corners cut off by `cut` metres."""
    x, y = long / 2, wide / 2
    half = np.array([(x - cut, -y), (x, -y + cut), (x, y - cut), (x - cut, y)])
    return np.concatenate([half, -half])


def ship(canvas: Canvas, pose: Pose, long: float, wake: bool = False, clear: float = 0.5) -> bool:
    """Draw a ship or boat of `long` metres on the water; under way it drags a wake."""
    rng = canvas.rng
    parts = _boat(rng, long) if long < 16 else _vessel(rng, long)
    placed = place(canvas, pose, parts, Material.SHIP, SHIP, (Material.WATER, Material.FOAM), clear)
    if placed and wake:
        trail_wake(canvas, pose, long)
    return placed


def hull(long: float, wide: float, bow: float) -> np.ndarray:
    """Outline of a hull (N, 2); `bow` is the tapering share."""
    t = np.linspace(0, 1, 6)
    taper = np.sqrt(1 - t**1.7) * wide / 2
    x = long / 2 - bow * long * (1 - t)
    side = np.column_stack([np.r_[-long / 2, -0.35 * long, x], np.r_[STERN * wide / 2, wide / 2, taper]])
    return np.concatenate([side, side[-2::-1] * (1, -1)])


def _boat(rng: np.random.Generator, long: float) -> list[Part]:
    wide = long * rng.uniform(0.28, 0.36)
    color = mix(WHITE, pick(rng, HULLS), rng.choice([0.0, 0.15, 0.8]))
    parts = [Part(hull(long, wide, 0.45), color, 1.2)]
    if rng.random() < 0.4:  # a sailing boat: narrow cockpit and mast
        mast = Part(box(0.72 * long, 0.25, -0.05 * long), mix(color, GLASS, 0.5), 3.0)
        return [*parts, Part(box(0.3 * long, 0.45 * wide, -0.25 * long), color * 0.7, 1.2), mast]
    cockpit = Part(box(0.38 * long, 0.66 * wide, -0.22 * long), color * rng.uniform(0.5, 0.85), 1.2)
    return [*parts, cockpit, Part(box(0.1 * long, 0.6 * wide, 0.04 * long), GLASS, 1.8)]


def _vessel(rng: np.random.Generator, long: float) -> list[Part]:
    wide = long * rng.uniform(0.15, 0.22)
    color, deck = pick(rng, HULLS, 6), pick(rng, DECKS, 6)
    inner = hull(long, wide, 0.28) * (0.96, 0.84)
    parts = [Part(hull(long, wide, 0.28), color, 4.0), Part(inner, deck, 4.0)]
    kind = rng.choice(["cargo", "hatches", "ferry", "tanker"])
    if kind == "ferry":
        for share, h in ((0.72, 7.0), (0.6, 9.0), (0.3, 11.0)):
            parts.append(
                Part(
                    box(share * long, (0.5 + 0.4 * share) * wide, -0.08 * long),
                    WHITE * rng.uniform(0.85, 1),
                    h,
                )
            )
        return parts
    parts += _cargo(rng, kind, long, wide, deck)
    bridge = box(0.11 * long, 0.86 * wide, -0.38 * long)
    return [
        *parts,
        Part(bridge, WHITE * rng.uniform(0.85, 1), 12.0),
        Part(box(0.03 * long, 0.3 * wide, -0.42 * long), color, 14.0),
    ]


def _cargo(rng: np.random.Generator, kind: str, long: float, wide: float, deck: np.ndarray) -> list[Part]:
    if kind == "tanker":
        pipes = [
            Part(box(0.55 * long, 0.05 * wide, 0.02 * long, y * wide), deck * 1.25, 5.0)
            for y in (-0.08, 0.08)
        ]
        return [*pipes, Part(box(0.04 * long, 0.6 * wide), deck * 0.7, 5.0)]
    bays = np.linspace(-0.26, 0.28, max(3, int(long / 14)))
    step = (bays[1] - bays[0]) * long * 0.86
    if kind == "hatches":
        color = pick(rng, DECKS, 6)
        return [Part(box(step, 0.66 * wide, x * long), color, 5.0) for x in bays]
    rows = np.linspace(-0.3, 0.3, 3)
    return [
        Part(
            box(step, 0.27 * wide, x * long, y * wide),
            mix(pick(rng, CARS), pick(rng, HULLS), 0.4),
            rng.uniform(5, 11),
        )
        for x in bays
        for y in rows
        if rng.random() < 0.9
    ]


def plane(canvas: Canvas, pose: Pose, long: float, allowed: tuple[Material, ...]) -> bool:
    """Draw a plane of `long` metres: an airliner above 15 m, else a small straight-winged one."""
    rng = canvas.rng
    color = pick(rng, JETS, 4)
    parts = _airliner(rng, long, color) if long > 15 else _light_plane(rng, long, color)
    return place(canvas, pose, parts, Material.PLANE, PLANE, allowed)


def _airliner(rng: np.random.Generator, long: float, color: np.ndarray) -> list[Part]:
    half, body, sweep = 0.5 * long * rng.uniform(0.86, 1.02), 0.055 * long, rng.uniform(0.2, 0.3) * long
    tail = mix(color, pick(rng, CARS), rng.choice([0.0, 0.7]))
    wing = [(0.14, 0), (-0.04, 0), (-0.045, 0.35), (0, 1.0), (0.035, 1.0), (0.07, 0.4)]
    parts = []
    for s in (-1, 1):
        outline = np.array([(x * long - sweep * y, s * y * half) for x, y in wing])
        parts.append(Part(outline, color * 0.93, 3.5))
        fin = np.array([(-0.40, 0), (-0.47, 0), (-0.5, 0.36), (-0.475, 0.36)]) * (long, s * half)
        parts.append(Part(fin, color * 0.95, 5.0))
        for y in (0.33, 0.62) if long > 55 else (0.36,):
            pod = box(0.08 * long, 0.03 * long, 0.12 * long - sweep * y, s * y * half)
            parts.append(Part(pod, color * rng.choice([0.6, 0.85]), 2.5))
    nose, end = 0.5 * long, -0.49 * long
    fuselage = np.array(
        [
            (nose, 0),
            (0.46 * long, 0.35 * body),
            (0.4 * long, body / 2),
            (-0.28 * long, body / 2),
            (end, 0.1 * body),
        ]
    )
    fuselage = np.concatenate([fuselage, fuselage[::-1] * (1, -1)])
    parts += [Part(fuselage, color, 5.5), Part(box(0.1 * long, 0.25 * body, -0.43 * long), tail, 9.0)]
    return [*parts, Part(box(0.018 * long, 0.5 * body, 0.455 * long), GLASS, 5.0)]


def _light_plane(rng: np.random.Generator, long: float, color: np.ndarray) -> list[Part]:
    half, chord, body = long * rng.uniform(0.55, 0.7), 0.17 * long, 0.13 * long
    wing = Part(_rounded(chord, 2 * half, 0.04 * long) + (0.1 * long, 0), color, 2.0)
    tail = Part(box(0.1 * long, 0.36 * long, -0.44 * long), color * 0.95, 1.6)
    fuselage = np.array([(0.5, 0.25), (0.3, 0.5), (-0.05, 0.5), (-0.49, 0.12)]) * (long, body)
    outline = np.concatenate([fuselage, fuselage[::-1] * (1, -1)])
    stripe = mix(color, pick(rng, CARS), 0.6)
    canopy = Part(box(0.1 * long, 0.8 * body, 0.2 * long), GLASS, 2.2)
    return [Part(outline, mix(color, stripe, 0.3), 1.8), tail, wing, canopy]
