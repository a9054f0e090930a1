"""Rivers, lakes and coasts: shapes, shores and depth. The waves are added when the scene is rendered."""

import cv2
import numpy as np

from scenes.canvas import SCALE, Canvas
from scenes.classes import Material
from scenes.geometry import Frame, Point, Pose, at, blob, curve, fractal, noise, offset, ribbon, rotate
from scenes.palette import Palette, mix


def river(canvas: Canvas, width: float, angle: float, through: Point | None = None) -> np.ndarray:
    """Draw a river of about `width` metres across the scene; returns its centre line (N, 2).

    It runs about along `angle`, close to the point `through` or, without one, freely past the centre.
    """
    rng, palette = canvas.rng, canvas.palette
    reach, bend = canvas.reach + width, 0.25 * canvas.half if through is None else 8.0
    origin = rng.uniform(-0.35, 0.35, 2) * canvas.half if through is None else through
    line = Frame(origin, angle).world(curve(rng, (-reach, 0), (reach, 0), bend, 120))
    banks = [width * (0.5 + 0.12 * _wander(rng, 120)) for _ in range(2)]
    for grow, material, color in _shores(rng, palette, rng.uniform(1.5, 8.0)):
        ragged = [np.clip(b + grow * (1 + 0.5 * _wander(rng, 120)), 0.5, None) for b in banks]
        canvas.fill(ribbon(line, *ragged), material, color)
    canvas.fill(ribbon(line, *banks), Material.WATER, palette.water)
    return line


def lake(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """Draw a lake or pond with its shore."""
    rng, palette = canvas.rng, canvas.palette
    outline = blob(rng, x, y, radius)
    closed = np.concatenate([outline, outline[:1]])
    for grow, material, color in _shores(rng, palette, rng.uniform(0.8, 4.0)):
        canvas.fill(offset(closed, -grow * (1 + 0.4 * _wander(rng, len(closed)))), material, color)
    canvas.fill(outline, Material.WATER, palette.water)


def coast(canvas: Canvas, frame: Frame) -> None:
    """Draw open water at v < 0 of the frame with a beach and surf."""
    rng, palette = canvas.rng, canvas.palette
    reach = canvas.reach * 1.3
    line = curve(rng, (-reach, 0), (reach, 0), 0.12 * canvas.half, 160)
    line[:, 1] += 1.2 * _wander(rng, 160)
    for grow, material, color in _shores(rng, palette, rng.uniform(3, 14)):
        shore = line + (0, grow) * (1 + 0.35 * _wander(rng, 160)[:, None])
        canvas.fill(frame.world(_close(shore, reach)), material, color)
    canvas.fill(frame.world(_close(line, reach)), Material.WATER, palette.water)
    surf = mix(palette.water, np.array((220, 222, 216)), rng.uniform(0.3, 0.8))
    for shift in np.cumsum(rng.uniform(0.3, 4.0, rng.integers(1, 4))):
        wave = line - np.stack([0 * shift * line[:, 0], shift + 0.8 * _wander(rng, 160)], 1)
        canvas.stroke(frame.world(wave), rng.uniform(0.3, 1.2), Material.FOAM, surf)


def deepen(canvas: Canvas) -> None:
    """Blend the water near its shores towards shallow water and vary it slowly elsewhere."""
    rng, palette = canvas.rng, canvas.palette
    water = (canvas.material[::SCALE, ::SCALE] == Material.WATER).astype(np.uint8)
    if not water.any():
        return
    padded = cv2.copyMakeBorder(water, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] * canvas.gsd
    patches = fractal(rng, canvas.size, 40 / canvas.gsd, 3)
    shallow = np.exp(-distance / rng.uniform(1.5, 9.0)) * rng.uniform(0.2, 0.7)
    share = np.clip(shallow + 0.10 * patches, -0.3, 0.9)[..., None].astype(np.float32)
    bottom = mix(palette.water, mix(palette.sand, palette.grass, rng.uniform(0, 0.8)), 0.8)
    color = np.clip(mix(palette.water, bottom, share), 0, 255).astype(np.uint8)
    color = cv2.resize(color, None, fx=SCALE, fy=SCALE)
    canvas.color[:] = cv2.copyTo(color, (canvas.material == Material.WATER).astype(np.uint8), canvas.color)


def trail_wake(canvas: Canvas, pose: Pose, long: float) -> None:
    """Trail foam behind a ship of `long` metres: churned water and two diverging bow waves."""
    rng = canvas.rng
    reach = long * rng.uniform(1.5, 4.0)
    ends = at(pose, np.array([(long / 2, 0), (-reach, -0.6 * reach), (-reach, 0.6 * reach)]))
    corners = np.clip(canvas.pixels(np.array([ends.min(0), ends.max(0)])), 0, SCALE * canvas.size)
    (x0, y0), (x1, y1) = corners.astype(int)
    side = max(x1 - x0, y1 - y0)
    if min(x1 - x0, y1 - y0) < 2:
        return
    x, y = np.meshgrid(np.arange(x0, x1), np.arange(y0, y1))
    metres = (np.stack([x, y], -1) - (canvas.size - 1)) * (canvas.gsd / SCALE) - pose[:2]
    u, v = np.moveaxis(rotate(metres, -pose.angle), -1, 0)
    rough = 0.4 * noise(rng, side, 4 / canvas.gsd) + 0.3 * noise(rng, side, 2.0)
    foam = _wake(0.45 * long - u, v, long, reach) * (0.75 + rough[: y1 - y0, : x1 - x0])
    foam *= canvas.material[y0:y1, x0:x1] == Material.WATER
    area = canvas.color[y0:y1, x0:x1]
    area[:] = mix(area, np.array((224, 228, 226)), np.clip(foam, 0, 0.85)[..., None]).astype(np.uint8)


def _wake(back: np.ndarray, v: np.ndarray, long: float, reach: float) -> np.ndarray:
    """Foam strength at `back` metres behind the bow and `v` metres beside the course."""
    fade = np.exp(-1.6 * back / reach) * (back > 0)
    core = np.exp(-((v / (0.07 * long + 0.03 * np.abs(back))) ** 2))
    core *= np.clip((back - 0.8 * long) / (0.2 * long), 0, 1)
    arms = np.exp(-(((np.abs(v) - 0.08 * long - 0.2 * back) / (0.02 * long + 0.035 * np.abs(back))) ** 2))
    return (core + 0.8 * arms) * fade


def _wander(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random walk-like values (count,) of about unit variance, rough at all scales."""
    out = np.zeros(count)
    at = np.linspace(0, 1, count)
    for nodes, weight in ((5, 0.7), (14, 0.5), (40, 0.4), (count, 0.25)):
        out += weight * np.interp(at, np.linspace(0, 1, nodes), rng.normal(size=nodes))
    return out


def _shores(
    rng: np.random.Generator, palette: Palette, width: float
) -> list[tuple[float, Material, np.ndarray]]:
    """Draw the strips along a shore, outermost first: (metres beyond the water, material, colour)."""
    reeds = mix(palette.grass, palette.species[0], rng.uniform(0.2, 0.8)) * rng.uniform(0.75, 1.0)
    sand = mix(palette.sand, palette.grass, rng.uniform(0, 0.4))
    mud = mix(sand, palette.water, 0.45)
    strips = [
        (width, Material.GRASS, reeds),
        (0.6 * width, Material.SOIL, sand),
        (0.2 * width, Material.SOIL, mud),
    ]
    return strips if rng.random() < 0.7 else strips[:1]


def _close(line: np.ndarray, reach: float) -> np.ndarray:
    return np.concatenate([line, [(2 * reach, -3 * reach), (-2 * reach, -3 * reach)]])
