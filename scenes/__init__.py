"""Embedded data: deterministic aerial-like scenes with masks and rotated boxes."""

from scenes.classes import BOX_CLASSES, CLASSES, LABEL_SETS, LabelSet
from scenes.scene import Scene, generate_scene
from scenes.themes import THEMES

__all__ = [
    "BOX_CLASSES",
    "CLASSES",
    "LABEL_SETS",
    "THEMES",
    "LabelSet",
    "Scene",
    "generate_scene",
]
