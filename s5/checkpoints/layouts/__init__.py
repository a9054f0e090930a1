"""Layouts of checkpoints, an adapter for each.

An encoder is found by its patch embedding; the first of `LAYOUTS` that `matches` it converts it. A further
layout is a further class there.
"""

from s5.checkpoints.layouts.base import Layout, OtherArchitectureError, Parts, Weights
from s5.checkpoints.layouts.hugging_face import HuggingFace, HuggingFace5
from s5.checkpoints.layouts.mae import Timm, UnofficialMAE
from s5.checkpoints.layouts.openmmlab import MMPretrain, MMSegmentation
from s5.checkpoints.layouts.s5 import S5, PublishedS5, S5Body

__all__ = ["LAYOUTS", "Layout", "OtherArchitectureError", "Parts", "Weights", "known_layouts"]

LAYOUTS: tuple[Layout, ...] = (
    S5(),
    S5Body(),
    PublishedS5(),
    UnofficialMAE(),
    Timm(),
    MMSegmentation(),
    MMPretrain(),
    HuggingFace(),
    HuggingFace5(),
)
"""In this order; `Timm` takes any blocks, so those with more to be told by come before it."""


def known_layouts() -> str:
    """The layouts that load, for messages."""
    examples: dict[str, list[str]] = {}
    for layout in LAYOUTS:
        examples.setdefault(layout.name, []).append(layout.example)
    return "Known layouts: " + "; ".join(f"{name} ({' or '.join(keys)})" for name, keys in examples.items())
