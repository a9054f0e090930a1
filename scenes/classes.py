"""Classes, surface materials and coarser label sets of the synthetic scenes."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from s5.data.label_table import IGNORE
from s5.data.labels import get_table

TABLE = get_table("scenes")
CLASSES = TABLE.classes
FIELD, FOREST, WATER, ROAD, BUILDING, VEHICLE, SHIP, PLANE = range(len(CLASSES))
BOX_CLASSES = {VEHICLE: "vehicle", SHIP: "ship", PLANE: "plane"}


class LabelSet(NamedTuple):
    """A coarser set of classes: `ids[train id of the 8 classes]` is an index into `classes`, or IGNORE."""

    classes: tuple[str, ...]
    ids: tuple[int, ...]

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask, uint8 (H, W) of ids 0..7 or IGNORE, to the ids of this label set."""
        table = np.full(256, IGNORE, np.uint8)
        table[: len(self.ids)] = self.ids
        return table[mask]


# `landcover` ignores movable objects, which are not part of a land-cover map.
LABEL_SETS: dict[str, LabelSet] = {
    "scenes": LabelSet(CLASSES, tuple(range(len(CLASSES)))),
    "landcover": LabelSet(("field", "forest", "water", "built"), (0, 1, 2, 3, 3, IGNORE, IGNORE, IGNORE)),
    "roads": LabelSet(("background", "road"), (0, 0, 0, 1, 0, 0, 0, 0)),
    "water": LabelSet(("background", "water"), (0, 0, 1, 0, 0, 0, 0, 0)),
    "objects": LabelSet(("background", "vehicle", "ship", "plane"), (0, 0, 0, 0, 0, 1, 2, 3)),
}


class Material(IntEnum):
    """Material of a surface, which determines its class and texture."""

    GRASS = 0
    CROP = 1
    SOIL = 2
    FLOOR = 3
    CROWN = 4
    WATER = 5
    FOAM = 6
    ASPHALT = 7
    CONCRETE = 8
    DIRT = 9
    ROOF = 10
    VEHICLE = 11
    SHIP = 12
    PLANE = 13


class Texture(NamedTuple):
    """Class of a material, and relative amplitudes of its fine, medium and coarse brightness noise."""

    label: int
    fine: float
    medium: float
    coarse: float


TEXTURES: dict[Material, Texture] = {
    Material.GRASS: Texture(FIELD, 0.040, 0.050, 0.060),
    Material.CROP: Texture(FIELD, 0.045, 0.030, 0.045),
    Material.SOIL: Texture(FIELD, 0.050, 0.060, 0.060),
    Material.FLOOR: Texture(FOREST, 0.090, 0.080, 0.060),
    Material.CROWN: Texture(FOREST, 0.090, 0.060, 0.060),
    Material.WATER: Texture(WATER, 0.010, 0.010, 0.040),
    Material.FOAM: Texture(WATER, 0.080, 0.060, 0.020),
    Material.ASPHALT: Texture(ROAD, 0.025, 0.030, 0.045),
    Material.CONCRETE: Texture(ROAD, 0.025, 0.035, 0.040),
    Material.DIRT: Texture(ROAD, 0.045, 0.050, 0.050),
    Material.ROOF: Texture(BUILDING, 0.025, 0.030, 0.020),
    Material.VEHICLE: Texture(VEHICLE, 0.020, 0.0, 0.0),
    Material.SHIP: Texture(SHIP, 0.030, 0.010, 0.0),
    Material.PLANE: Texture(PLANE, 0.015, 0.0, 0.0),
}

NATURAL = (Material.GRASS, Material.CROP, Material.SOIL, Material.FLOOR)
PAVED = (Material.ASPHALT, Material.CONCRETE, Material.DIRT)


def is_one_of(material: np.ndarray, wanted: tuple[Material, ...]) -> np.ndarray:
    """Mask, uint8 0 or 1, of the pixels of a uint8 material layer that are one of `wanted`."""
    table = np.zeros(256, np.uint8)
    table[list(wanted)] = 1
    return table[material]


def material_table(field: str) -> np.ndarray:
    """A field of TEXTURES as a 256-entry lookup table (uint8 for `label`, else float32)."""
    table = np.zeros(256, np.uint8 if field == "label" else np.float32)
    for material, texture in TEXTURES.items():
        table[material] = getattr(texture, field)
    return table
