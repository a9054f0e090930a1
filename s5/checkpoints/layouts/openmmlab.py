"""Checkpoints of mmsegmentation and mmpretrain."""

import re

from s5.checkpoints.layouts import published
from s5.checkpoints.layouts.base import Layout, in_blocks, same_names
from s5.checkpoints.resizing import StateDict


class MMSegmentation(Layout):
    """``VisionTransformer`` of mmsegmentation, whose block names the published S5 layout has, too."""

    name = "mmsegmentation ViT"
    example = "layers.N.attn.attn.in_proj_weight"
    block = re.compile(r"^layers\.(\d+)\.(.+)$")
    block_names = published.BLOCK_NAMES
    names = same_names("cls_token", "pos_embed") | {"patch_embed.projection": "patch_embed.proj"}

    def matches(self, encoder: StateDict) -> bool:
        """PyTorch's attention in layers."""
        return any(in_blocks(self, encoder, "attn.attn.in_proj_weight"))


class MMPretrain(MMSegmentation):
    """``VisionTransformer`` and ``MAEViT`` of mmpretrain, mmselfsup and mmclassification."""

    name = "mmpretrain ViT"
    example = "layers.N.attn.qkv.*, layers.N.ffn.*"
    block_names = same_names("attn.qkv", "attn.proj") | {
        "ln1": "norm1",
        "ln2": "norm2",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }

    def matches(self, encoder: StateDict) -> bool:
        """One linear layer for queries, keys and values, and the FFN of mmcv."""
        return any(in_blocks(self, encoder, "attn.qkv.weight")) and any(
            in_blocks(self, encoder, "ffn.layers")
        )
