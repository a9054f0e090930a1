"""A scene: image, mask and rotated boxes, as a pure function of (seed, index, size, theme)."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from s5.data.oriented.drawing import outline
from s5.data.oriented.geometry import regular_boxes, share_inside, to_polygons
from scenes.canvas import SCALE, Canvas
from scenes.classes import TABLE, material_table
from scenes.objects import vehicle
from scenes.palette import Palette
from scenes.render import Conditions, render
from scenes.themes import THEMES
from scenes.trees import plant

MIN_VISIBLE = 0.5  # share of a box's area; objects with less in view have no box


@dataclass(frozen=True)
class Scene:
    """A generated scene.

    Attributes:
        image: uint8 (S, S, 3) RGB.
        mask: uint8 (S, S), ids 0..7 of `CLASSES`; every pixel is labelled.
        boxes: float32 (N, 6): cx, cy, w, h in pixels (pixel i spans [i, i + 1]), theta in radians, class id
            of the mask. `w` >= `h`, theta in [-pi/2, pi/2) turns from x towards y. At least half of each
            box lies in the image.
        meta: Theme, seed, index, gsd (metres per pixel), season, sun azimuth and elevation (degrees).
    """

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    meta: dict[str, Any]

    @property
    def polygons(self) -> np.ndarray:
        """Corners (N, 4, 2) of the boxes in pixels."""
        return polygons(self.boxes)

    def plot(self, zoom: int = 1) -> np.ndarray:
        """Return image, coloured mask and boxes side by side, uint8 (S * zoom, 3 * S * zoom, 3)."""
        size = (self.image.shape[1] * zoom, self.image.shape[0] * zoom)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(TABLE.colorize(self.mask), size, interpolation=cv2.INTER_NEAREST)
        boxes = image.copy()
        for polygon, label in zip(self.polygons, self.boxes[:, 5], strict=True):
            outline(boxes, polygon * zoom - 0.5, TABLE.palette[int(label)], 1)
        return np.hstack([image, mask, boxes])


def generate_scene(seed: int, index: int, size: int = 256, theme: str | None = None) -> Scene:
    """Generate one scene.

    Args:
        seed: Seed of the dataset.
        index: Number of the scene; without `theme` it also selects the theme, in turn.
        size: Side of the image in pixels; does not affect the ground resolution.
        theme: One of `THEMES`, or None.

    Raises:
        ValueError: Unknown theme.
    """
    names = list(THEMES)
    name = names[index % len(names)] if theme is None else theme
    if name not in THEMES:
        raise ValueError(f"unknown theme {name!r}; must be one of {', '.join(names)}")
    rng = np.random.default_rng([seed, index, names.index(name)])
    low, high = THEMES[name].gsd
    gsd = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    palette, conditions = Palette.draw(rng), Conditions.draw(rng)
    canvas = Canvas(size, gsd, rng, palette, conditions.sun)
    THEMES[name].compose(canvas)
    plant(canvas)
    for pose, kind in canvas.spots:
        vehicle(canvas, pose, kind)
    mask = cv2.LUT(np.ascontiguousarray(canvas.material[::SCALE, ::SCALE]), material_table("label"))
    return Scene(
        render(canvas, conditions),
        mask,
        visible_boxes(np.array(canvas.boxes, np.float64).reshape(-1, 6), size),
        _meta(seed, index, name, canvas),
    )


def polygons(boxes: np.ndarray) -> np.ndarray:
    """Corners float64 (N, 4, 2) of boxes (N, 6), in pixels."""
    return to_polygons(boxes[:, :5].astype(np.float64))


def visible_share(boxes: np.ndarray, size: int) -> np.ndarray:
    """Share (N,) of the area of boxes (N, 6) inside an image of `size` pixels."""
    return share_inside(polygons(boxes), (0, 0, size, size))


def visible_boxes(boxes: np.ndarray, size: int) -> np.ndarray:
    """Boxes float32 (N, 6) in le90 form, without those that are mostly outside an image of `size` pixels."""
    regular = np.concatenate([regular_boxes(boxes[:, :5]), boxes[:, 5:].astype(np.float32)], axis=1)
    return regular[visible_share(boxes, size) >= MIN_VISIBLE]


def _meta(seed: int, index: int, theme: str, canvas: Canvas) -> dict[str, Any]:
    sun = canvas.sun
    return {
        "theme": theme,
        "seed": seed,
        "index": index,
        "gsd": canvas.gsd,
        "season": canvas.palette.season,
        "sun_azimuth": float(np.degrees(np.arctan2(sun.direction[1], sun.direction[0]))),
        "sun_elevation": float(np.degrees(np.arctan(sun.slope))),
    }
