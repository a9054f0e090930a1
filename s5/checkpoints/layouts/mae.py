"""Checkpoints of MAE, official and not, and of timm."""

import torch

from s5.checkpoints.layouts.base import PATCH_EMBEDDING, Layout, in_blocks, join, same_names
from s5.checkpoints.resizing import StateDict

PRETRAINING_PIXELS = 224  # image side of the published weights of the layout that stores no positions


class Timm(Layout):
    """MAE's own code, timm, and what follows them."""

    name = "MAE or timm"
    example = "blocks.N.attn.qkv.*"
    block_names = same_names("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.experts")
    names = same_names("cls_token", "pos_embed", "patch_embed.proj")

    def matches(self, encoder: StateDict) -> bool:
        """Blocks, and no more to be told by."""
        return any(map(self.block.match, encoder))


class UnofficialMAE(Layout):
    """MAE-pytorch (pengzhiliang): biases of queries and values, none of keys, and no stored positions."""

    name = "unofficial MAE (MAE-pytorch)"
    example = "blocks.N.attn.q_bias"
    lacks = ("pyramid.", "cls_token")
    block_names = same_names(
        "norm1", "norm2", "attn.qkv", "attn.q_bias", "attn.v_bias", "attn.proj", "mlp.fc1", "mlp.fc2"
    )
    names = Timm.names

    def matches(self, encoder: StateDict) -> bool:
        """Separate biases in blocks."""
        return any(in_blocks(self, encoder, "attn.q_bias"))

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Join the biases, and compute the positions if they are not learned."""
        notes = []
        backbone = join(backbone, ("attn.q_bias", None, "attn.v_bias"), "attn.qkv.bias")
        if "pos_embed" not in backbone:
            side = PRETRAINING_PIXELS // backbone[PATCH_EMBEDDING].shape[-1]
            backbone["pos_embed"] = sinusoid_positions(side * side, backbone[PATCH_EMBEDDING].shape[0])
            notes.append(
                f"fixed sin-cos positional embedding of {side}x{side}, which this layout does not store"
            )
        completed, more = super().complete(backbone)
        return completed, (*notes, *more)


def sinusoid_positions(length: int, width: int) -> torch.Tensor:
    """The positional embedding (1, length, width) of "Attention is all you need", patches counted by rows.

    Even channels are sines, odd ones cosines, of wavelengths from 2 pi to 20 000 pi patches.
    """
    channel = torch.arange(width, dtype=torch.float64)
    wavelength = 10_000 ** (2 * (channel // 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / wavelength
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]
