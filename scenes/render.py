"""Render layers to an image: surface texture, waves, cast shadows, light, atmosphere and sensor."""

from typing import NamedTuple

import cv2
import numpy as np

from scenes.canvas import SCALE, Canvas, Sun
from scenes.classes import Material, material_table
from scenes.geometry import fractal, noise, streaks


class Conditions(NamedTuple):
    """Light, atmosphere and sensor of a scene."""

    sun: Sun
    sky: np.ndarray  # (3,) light in the shadow
    direct: np.ndarray  # (3,) additional light of the sun on flat ground
    haze: float  # 0..1 share of the haze colour
    air: np.ndarray  # (3,) haze colour
    cast: np.ndarray  # (3,) white balance error
    level: float  # mean grey level that the exposure aims at
    saturation: float
    gamma: float
    blur: float  # standard deviation of the point spread function, image pixels
    noise: float  # standard deviation at mid grey, grey levels
    texture: float  # gain of all surface noise
    clouds: bool  # whether a cloud shadow covers part of the scene
    quality: int  # JPEG quality, 0 for none

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Conditions":
        """Draw the conditions of a scene."""
        azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 62))
        sun = Sun(np.array([np.cos(azimuth), np.sin(azimuth)]), float(np.tan(elevation)))
        warm = rng.uniform(-0.04, 0.07)
        contrast = rng.uniform(0.38, 0.68)
        exposure = rng.uniform(0.85, 1.18)
        return cls(
            sun=sun,
            sky=exposure * (1 - contrast) * np.array([0.88, 0.97, 1.14]),
            direct=exposure * contrast * np.array([1 + warm, 1.0, 1 - warm]),
            haze=float(rng.beta(1.3, 7) * 0.6),
            air=np.array([172, 182, 194]) + rng.normal(0, 8, 3),
            cast=1 + np.clip(rng.normal(0, 0.025, 3), -0.05, 0.05),
            level=float(rng.uniform(80, 125)),
            saturation=float(rng.uniform(0.65, 1.0)),
            gamma=float(rng.uniform(0.85, 1.2)),
            blur=float(rng.uniform(0.38, 0.75)),
            noise=float(rng.uniform(1.0, 5.0)),
            texture=float(rng.uniform(0.7, 1.35)),
            clouds=bool(rng.random() < 0.12),
            quality=int(rng.integers(55, 96)) if rng.random() < 0.5 else 0,
        )


def render(canvas: Canvas, conditions: Conditions) -> np.ndarray:
    """Render a canvas to uint8 (S, S, 3) RGB."""
    spread = conditions.blur * SCALE
    color = cv2.GaussianBlur(canvas.color, (0, 0), spread)[::SCALE, ::SCALE].astype(np.float32)
    shade = cv2.GaussianBlur(canvas.shade, (0, 0), spread)[::SCALE, ::SCALE]
    material = np.ascontiguousarray(canvas.material[::SCALE, ::SCALE])
    color *= _texture(canvas, material, conditions.texture)[..., None]
    _waves(canvas, material, color)
    shadow = cast_shadows(canvas)
    if conditions.clouds:
        cover = fractal(canvas.rng, canvas.size, canvas.size / 1.5, 4)
        shadow = np.maximum(shadow, np.clip(cover * 1.5 - 0.8, 0, 0.75))
    direct = (1 - shadow) * shade
    light = conditions.sky.astype(np.float32) + direct[..., None] * conditions.direct.astype(np.float32)
    return _expose(canvas.rng, color * light, conditions)


def cast_shadows(canvas: Canvas) -> np.ndarray:
    """Shadow strength 0..1, float32 (S, S).

    A point is in shadow if the surface towards the sun, lowered by tan(elevation) per metre, is above
    it. The maximum along the ray is computed by doubling: log2(length) shifts instead of one per pixel.
    """
    sun, height = canvas.sun, np.ascontiguousarray(canvas.height[::SCALE, ::SCALE])
    drop = sun.slope * canvas.gsd  # metres per pixel towards the sun
    reach = float(height.max()) / drop
    ray, step = height, 1
    while step <= reach:
        dx, dy = sun.direction * step
        matrix = np.array([[1, 0, dx], [0, 1, dy]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(ray, matrix, ray.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        ray = np.maximum(ray, moved - np.float32(step * drop))
        step *= 2
    soft = np.float32(max(0.5, 1.2 * drop))
    return cv2.GaussianBlur(np.clip((ray - height - 0.15) / soft, 0, 1), (0, 0), 0.6)


def _texture(canvas: Canvas, material: np.ndarray, gain: float) -> np.ndarray:
    """Brightness factor float32 (S, S) from noise at three scales, with the amplitudes of each material."""
    rng, size, cell = canvas.rng, canvas.size, 1 / canvas.gsd
    fields = (
        noise(rng, size, 1.0) + 0.8 * noise(rng, size, 2.2),
        fractal(rng, size, 6 * cell, 3),
        noise(rng, size, 35 * cell),
    )
    total = np.ones((size, size), np.float32)
    for name, field in zip(("fine", "medium", "coarse"), fields, strict=True):
        total += cv2.LUT(material, material_table(name) * np.float32(gain)) * field
    return total


def _waves(canvas: Canvas, material: np.ndarray, color: np.ndarray) -> None:
    """Add waves, their glint and a slow sheen to the water, in place."""
    rng, sun, water = canvas.rng, canvas.sun.direction, material == Material.WATER
    wind, strength = rng.uniform(0, np.pi), rng.uniform(0.0, 0.09)
    glint, sheen = rng.choice([0, 0, rng.uniform(20, 70)]), rng.uniform(-14, 14)
    if not water.any():
        return
    cell = max(1.6, rng.uniform(1.2, 3.5) / canvas.gsd)
    waves = 0.7 * streaks(rng, canvas.size, 2.6 * cell, cell, wind)
    waves += 0.5 * streaks(rng, canvas.size, 1.8 * cell, 0.6 * cell, wind + 0.5)
    waves += 0.5 * noise(rng, canvas.size, 0.7 * cell) + 0.5 * noise(rng, canvas.size, 6 * cell)
    x, y = canvas.grid()
    slope = (x * sun[0] + y * sun[1]) / canvas.half
    sparkle = np.clip(waves + 0.6 * slope - 1.7, 0, 2) * glint
    factor, extra = 1 + strength * waves, sparkle + sheen * slope
    color[water] = color[water] * factor[water, None] + extra[water, None]


def _expose(rng: np.random.Generator, radiance: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Haze, white balance, tone curve, sensor noise, rounding and at times JPEG."""
    picture = radiance * (1 - conditions.haze) + (conditions.haze * conditions.air).astype(np.float32)
    picture *= np.sqrt(conditions.level / picture.mean())  # half-way to the intended exposure
    gray = picture.mean(-1, keepdims=True)
    picture = (gray + conditions.saturation * (picture - gray)) * conditions.cast.astype(np.float32)
    picture = 255 * cv2.pow(np.clip(picture, 0, 262) / 258, conditions.gamma)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture += grain * (conditions.noise * np.sqrt(0.35 + picture / 200))
    image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return _compress(image, conditions.quality) if conditions.quality else image


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decode an image as JPEG of the given quality."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded
