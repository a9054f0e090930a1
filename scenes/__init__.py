"""Embedded data: deterministic aerial-like scenes with masks and rotated boxes."""

from .boxes import draw_boxes
from .classes import BOX_CLASSES, CLASSES, LABEL_SETS, LabelSet
from .scene import Scene, generate_scene
from .themes import THEMES

__all__ = [
    "BOX_CLASSES",
    "CLASSES",
    "LABEL_SETS",
    "THEMES",
    "LabelSet",
    "Scene",
    "draw_boxes",
    "generate_scene",
]
