"""ViT with RVSA in the code of RVSA, SAMRS and MTP, whose names the released S5 weights share.

Names in blocks are those of this package. The index of pairs of tokens in a window, which these files store,
is a constant.
"""

import math
from collections.abc import Mapping

import torch
from timm.layers import gen_relative_position_index

from s5.backbones import StateDict
from s5.checkpoints.layouts.base import BLOCK_KEY, OtherArchitectureError, Parts, block_numbers, has_name
from s5.checkpoints.layouts.vit import BLOCK_LAYERS, VitLayout, same_names

WINDOW_TABLE = "attn.relative_position_bias_table"
WINDOW_INDEX = "attn.relative_position_index"
GLOBAL_TABLES = ("attn.full_attn_rel_pos_h", "attn.full_attn_rel_pos_w")
# Parts of the models of MTP and SAMRS that the released S5 models do not have.
OTHER_HEADS = (
    "semseghead_1",
    "inssegdecoder",
    "rotdetdecoder",
    "decoder",
    "decode_head",
    "rpn_head",
    "roi_head",
)


def has_windows(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a backbone has the windows of RVSA."""
    return any((match := BLOCK_KEY.match(key)) and match[2].startswith("attn.sampling_") for key in tensors)


class RvsaNames(VitLayout):
    """The names of a ViT with RVSA and its pyramid."""

    lacks = ()
    blocks = "blocks"
    block_names = same_names(
        *BLOCK_LAYERS,
        "mlp.experts",
        "attn.rel_pos_h",
        "attn.rel_pos_w",
        WINDOW_TABLE,
        "attn.sampling_offsets.2",
        "attn.sampling_scales.2",
        "attn.sampling_angles.2",
        *GLOBAL_TABLES,
    )
    names = {
        "pos_embed": "pos_embed",
        "patch_embed.proj": "patch_embed.proj",
        "fpn1.0": "pyramid.up4.0",
        "fpn1.1.ln": "pyramid.up4.1",
        "fpn1.3": "pyramid.up4.3",
        "fpn2.0": "pyramid.up2",
    }

    def rename(self, encoder: StateDict) -> tuple[StateDict, list[str]]:
        """Rename the tensors; the constant index is left out."""
        return super().rename({key: value for key, value in encoder.items() if WINDOW_INDEX not in key})

    def rename_back(self, backbone: StateDict) -> tuple[StateDict, list[str]]:
        """Rename the tensors, and add the constant index."""
        # The names include the pyramid's, so that nothing is left out.
        state, left_out = super().rename_back(backbone)
        for block in block_numbers(backbone):
            table = backbone.get(f"blocks.{block}.{WINDOW_TABLE}")
            if table is not None:
                window = (math.isqrt(len(table)) + 1) // 2
                index = gen_relative_position_index((window, window))
                state[f"{self.blocks}.{block}.{WINDOW_INDEX}"] = index
        return state, left_out


class Mtp(RvsaNames):
    """Files of RVSA, SAMRS and MTP.

    Heads are not read: they are of other tasks, and some have other layers. In RVSA's code, global attention
    has the names of tables that window attention has, in SAMRS's it has no tables.
    """

    key = "mtp"
    name = "RVSA, SAMRS or MTP"
    example = "blocks.N.attn.sampling_offsets.*, norm.*"
    unwritable = "write published-rvsa instead, which its code loads"

    def matches(self, parts: Parts) -> bool:
        """Match windows of RVSA with the norm after the blocks, other heads, or other tables."""
        if not has_windows(parts.encoder):
            return False
        tables = any(name in key for key in parts.encoder for name in GLOBAL_TABLES)
        heads = any(has_name(key, OTHER_HEADS) for key in parts.around)
        return heads or not tables or any(has_name(key, ("norm",)) for key in parts.encoder)

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Name or add the tables of global attention."""
        backbone, notes = super().complete(backbone)
        windowed = {n for n in block_numbers(backbone) if f"blocks.{n}.{WINDOW_TABLE}" in backbone}
        everywhere = [n for n in block_numbers(backbone) if n not in windowed]
        renamed, added = {}, {}
        for block in everywhere:
            for table in GLOBAL_TABLES:
                name, other = f"blocks.{block}.{table}", f"blocks.{block}.{table.replace('full_attn_', '')}"
                if other in backbone:
                    renamed[name] = backbone.pop(other)
                elif name not in backbone:
                    added[name] = _no_positions(backbone)
        if added:
            notes = (*notes, "no relative positions of global attention in the checkpoint: set to zero")
        if renamed:
            notes = (*notes, "its pyramid had four times the last block's output as input, not four blocks")
        return backbone | renamed | added, notes


def _no_positions(backbone: StateDict) -> torch.Tensor:
    """Table of global attention that changes nothing, for the grid of the positional embedding."""
    embeddings = next((value for key, value in backbone.items() if key.endswith(".attn.rel_pos_h")), None)
    if embeddings is None:
        raise OtherArchitectureError("the checkpoint has windows without relative positions (attn.rel_pos_h)")
    side = math.isqrt(backbone["pos_embed"].shape[1])
    return embeddings.new_zeros(2 * side - 1, embeddings.shape[1])
