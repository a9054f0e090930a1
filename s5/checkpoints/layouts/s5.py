"""Checkpoints of this package, and the released ones of S5."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from s5.backbones import identify
from s5.backbones.timm_models import BODY
from s5.checkpoints.layouts import published
from s5.checkpoints.layouts.base import Layout, Parts, Weights, in_blocks, require_positions, same_names
from s5.checkpoints.layouts.mae import Timm
from s5.checkpoints.resizing import StateDict


class S5(Timm):
    """This package's own: of the backbone alone, or of a whole model (``backbone.*``, ``heads.<task>.*``)."""

    name = "S5"
    example = "blocks.*, pyramid.*"
    lacks = ()
    names = same_names("cls_token", "pos_embed", "patch_embed.proj", "pyramid")

    def matches(self, encoder: StateDict) -> bool:
        """Blocks and a pyramid."""
        return super().matches(encoder) and any(key.startswith("pyramid.") for key in encoder)

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Nothing to add; there is no class slot."""
        require_positions(backbone)
        return backbone, ()


class S5Body(Layout):
    """This package's own, of backbones around a network of timm (``body.*``): no name changes."""

    name = "S5 around timm"
    example = "body.*"
    lacks = ()

    def matches(self, encoder: StateDict) -> bool:
        """The weights of a backbone of this package that is built so."""
        return any(key.startswith(BODY) for key in encoder) and identify(encoder) is not None

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """See the base class."""
        heads, unused = self.heads(parts.around)
        return Weights(self.name, parts.encoder, heads, (*unused, *parts.outside), self.lacks)


class PublishedS5(S5):
    """The released S5 weights: ``encoder.*``, ``semsegdecoder*``, ``semseghead*``, dense or with experts."""

    name = "published S5"
    example = "layers.N.ln1.*, fpn1.*, encoder.*"
    block = re.compile(r"^layers\.(\d+)\.(.+)$")
    block_names = published.BLOCK_NAMES
    names = published.BACKBONE_NAMES

    def matches(self, encoder: StateDict) -> bool:
        """Layers and a pyramid; without one, no class slot, which mmsegmentation always stores."""
        if any(key.startswith("fpn") for key in encoder):
            return any(map(self.block.match, encoder))
        table = encoder.get("pos_embed")
        square = table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]
        return square and any(in_blocks(self, encoder, "attn.attn.in_proj_weight"))

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Experts have numbers there, tasks here."""
        weights = super().to_ours(parts, experts)
        return replace(
            weights,
            backbone=published.name_experts(weights.backbone, tuple(weights.heads), tuple(experts)),
        )

    def heads(self, around: StateDict) -> tuple[dict[str, StateDict], list[str]]:
        """Heads by task, and the keys of other things."""
        return published.from_published_heads(around)
