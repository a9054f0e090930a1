"""The drawing surface of a scene: colour, material, height and shade layers at twice the image size."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from scenes.classes import Material
from scenes.geometry import Pose
from scenes.palette import Palette

Color = Sequence[float] | np.ndarray
SCALE = 2  # canvas pixels per image pixel
_SHIFT = 4  # fractional bits of the coordinates given to OpenCV


class Sun(NamedTuple):
    """Direction of the sunlight: `direction` unit vector (2,) towards the sun, `slope` tan(elevation)."""

    direction: np.ndarray
    slope: float


class Tree(NamedTuple):
    """A tree to be planted: position, crown radius and height in metres, colour in RGB."""

    x: float
    y: float
    radius: float
    height: float
    color: np.ndarray


class Spot(NamedTuple):
    """A parking spot or position of a vehicle: pose and kind (`car`, `truck` or `any`)."""

    pose: Pose
    kind: str


class Canvas:
    """Layers of a scene under construction, and the random state, palette and sun shared by all drawing code.

    Image pixel (i, j) is canvas pixel (2i, 2j), so decimated layers and masks are aligned exactly. The
    world origin is the image centre.

    Attributes:
        size: Image side in pixels.
        gsd: Ground resolution in metres per image pixel.
        rng: Draws everything.
        palette: Colours of the scene.
        sun: Lights roofs and crowns and casts the shadows.
        color: uint8 (2S, 2S, 3) RGB without light.
        material: uint8 (2S, 2S), values of `Material`.
        height: float32 (2S, 2S), metres above the ground; casts shadows.
        shade: float32 (2S, 2S), sunlight relative to flat ground (roof slopes, tree crowns).
        boxes: One (cx, cy, length, width, theta, class) per object, image pixels, before clipping.
        trees: Trees that are planted once all ground is painted.
        spots: Positions that get a vehicle once all trees are planted.
    """

    def __init__(self, size: int, gsd: float, rng: np.random.Generator, palette: Palette, sun: Sun) -> None:
        side = SCALE * size
        self.size, self.gsd, self.rng, self.palette, self.sun = size, gsd, rng, palette, sun
        self.color = np.zeros((side, side, 3), np.uint8)
        self.material = np.zeros((side, side), np.uint8)
        self.height = np.zeros((side, side), np.float32)
        self.shade = np.ones((side, side), np.float32)
        self.boxes: list[tuple[float, ...]] = []
        self.trees: list[Tree] = []
        self.spots: list[Spot] = []

    @property
    def half(self) -> float:
        """Half the side of the scene in metres."""
        return self.size * self.gsd / 2

    @property
    def reach(self) -> float:
        """Distance in metres from the centre to beyond every corner."""
        return 1.5 * self.half

    def park(self, x: float, y: float, angle: float, kind: str) -> None:
        """Reserve a position for a vehicle unless it is out of view."""
        if max(abs(x), abs(y)) < self.half + 8:
            self.spots.append(Spot(Pose(x, y, angle), kind))

    def grow(self, x: float, y: float, radius: float, height: float, color: np.ndarray) -> None:
        """Reserve a position for a tree unless it is out of view."""
        if max(abs(x), abs(y)) < self.half:
            self.trees.append(Tree(x, y, radius, height, color))

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """World x and y (float32 (S, S), metres) of the image pixels."""
        axis = ((np.arange(self.size) - (self.size - 1) / 2) * self.gsd).astype(np.float32)
        return np.meshgrid(axis, axis)  # type: ignore[return-value]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Map world points (..., 2) in metres to canvas pixel centres."""
        return np.asarray(points) * (SCALE / self.gsd) + (self.size - 1)

    def image_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map world points (..., 2) in metres to image coordinates, where pixel i spans [i, i + 1]."""
        return self.pixels(points) / SCALE + 0.5

    def visible(self, points: np.ndarray, margin: float = 0.0) -> bool:
        """Whether the bounding box of the points comes within `margin` metres of the scene."""
        limit = self.half + margin
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return bool(x0 < limit and y0 < limit and x1 > -limit and y1 > -limit)

    def fill(
        self, points: np.ndarray, material: Material, color: Color, height: float = 0.0, shade: float = 1.0
    ) -> None:
        """Fill a polygon (N, 2) in all layers."""
        if not self.visible(points):
            return
        polygon = [self._fixed(points)]
        cv2.fillPoly(self.color, polygon, _scalar(color), cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.material, polygon, int(material), cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.height, polygon, height, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.shade, polygon, shade, cv2.LINE_8, _SHIFT)

    def paint(self, points: np.ndarray, color: Color) -> None:
        """Fill a polygon (N, 2) in the colour layer only."""
        if self.visible(points):
            cv2.fillPoly(self.color, [self._fixed(points)], _scalar(color), cv2.LINE_AA, _SHIFT)

    def stroke(self, line: np.ndarray, width: float, material: Material, color: Color) -> None:
        """Draw a polyline (N, 2) of `width` metres on the ground, in all layers."""
        points, thickness = [self._fixed(line)], max(1, round(width * SCALE / self.gsd))
        cv2.polylines(self.color, points, False, _scalar(color), thickness, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.material, points, False, int(material), thickness, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.height, points, False, 0.0, thickness, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.shade, points, False, 1.0, thickness, cv2.LINE_8, _SHIFT)

    def trace(self, line: np.ndarray, width: float, color: Color, over: Color) -> None:
        """Draw a polyline in the colour layer only, fading into `over` where it is below a canvas pixel."""
        wide = width * SCALE / self.gsd
        cover = min(1.0, wide)
        if cover > 0.15 and self.visible(line):
            mixed = cover * np.asarray(color, float) + (1 - cover) * np.asarray(over, float)
            points = [self._fixed(line)]
            cv2.polylines(self.color, points, False, _scalar(mixed), max(1, round(wide)), cv2.LINE_AA, _SHIFT)

    def flood(self, where: np.ndarray, material: Material, color: Color) -> None:
        """Set colour and material where the canvas-sized mask `where` (uint8, non-zero) says so."""
        self.color[:] = cv2.copyTo(np.full_like(self.color, _scalar(color)[:3]), where, self.color)
        self.material[where > 0] = material

    def material_at(self, points: np.ndarray) -> np.ndarray:
        """Materials (N,) under world points (N, 2); -1 outside the scene."""
        xy = np.round(self.pixels(points)).astype(int)
        inside = ((xy >= 0) & (xy < SCALE * self.size)).all(-1)
        x, y = np.clip(xy, 0, SCALE * self.size - 1).T
        return np.where(inside, self.material[y, x].astype(int), -1)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.round(self.pixels(points) * (1 << _SHIFT)).astype(np.int32)


def _scalar(color: Color) -> tuple[int, ...]:
    return tuple(int(min(255, max(0, round(float(c))))) for c in color)
