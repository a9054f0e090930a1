"""Checkpoints of Swin, which are converted to timm's names with `body.` in front.

The projects differ in names, in the stage that a patch merging belongs to, and in the order of the channels
that it merges.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from s5.backbones import BODY, StateDict
from s5.checkpoints.layouts.base import Layout, OtherArchitectureError, Parts, Weights, has_name
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.layouts.hugging_face import HuggingFace5
from s5.checkpoints.layouts.vit import replace_start, same_names
from s5.errors import CheckpointError

MERGING = "downsample"
BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")
TABLE = "relative_position_bias_table"
# Computed from the window and the size of the image.
BUFFERS = ("relative_position_index", "attn_mask")
QUERY_KEY_VALUE = ("query", "key", "value")
MERGED = 2  # patches that are merged, along each side


class SwinLayout(Layout):
    """A layout of Swin with four stages, whose head and norms after the stages are left out.

    Attributes:
        stages: Prefix of a stage's keys, before its number.
        attention: Name in a block by which the layout is recognised.
        block_names: Names in a block, mapped to timm's.
        embedding: Names of the patch embedding's layers, mapped to timm's.
        merges_first: Whether a stage begins with patch merging, as in timm, instead of ending with it.
    """

    lacks = ("pyramid.",)
    stages: ClassVar[str] = "layers"
    attention: ClassVar[str]
    block_names: ClassVar[Mapping[str, str]]
    embedding: ClassVar[Mapping[str, str]]
    merges_first: ClassVar[bool] = False

    def matches(self, parts: Parts) -> bool:
        """Match the name of the attention in the blocks of stages."""
        return any(
            has_name(block[2], (self.attention,))
            for key in parts.encoder
            if (stage := self.in_stage(key)) and (block := BLOCK.match(stage[1]))
        )

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Rename the tensors; see `Layout.to_ours`."""
        backbone: StateDict = {}
        unused = []
        for key, value in parts.encoder.items():
            if (name := self.rename(key, parts.encoder)) is None:
                unused.append(key)
            else:
                backbone[BODY + name] = self.reorder(value) if f".{MERGING}." in name else value
        backbone = _join(backbone)
        return Weights(self.name, backbone, {}, (*unused, *parts.around, *parts.outside), self.lacks)

    def in_stage(self, key: str) -> tuple[int, str] | None:
        """Return the number of a tensor's stage and its name there; None for tensors outside of stages."""
        match = re.match(rf"{re.escape(self.stages)}[._](\d+)\.(.+)$", key)
        return (int(match[1]), match[2]) if match else None

    def rename(self, key: str, encoder: StateDict) -> str | None:
        """Name in timm's feature network; None for a tensor that it does not have and does not need.

        Raises:
            OtherArchitectureError: The tensor would change the output of the stages.
        """
        stage = self.in_stage(key)
        if stage is None and key != "absolute_pos_embed":
            return replace_start(key, self.embedding)
        name = None
        if stage is not None:
            number, inner = stage
            if key.endswith(BUFFERS):
                return None
            if block := BLOCK.match(inner):
                layer = replace_start(block[2], self.block_names)
                name = layer and f"layers_{number}.blocks.{block[1]}.{layer}"
            elif has_name(inner, (f"{MERGING}.norm", f"{MERGING}.reduction")):
                name = f"layers_{number if self.merges_first else number + 1}.{inner}"
        if name is None:
            raise OtherArchitectureError(
                f"the checkpoint has {key!r}, which Swin does not have; it looks like {guess(encoder)}"
            )
        return name

    def reorder(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put the merged channels, the last dimension of a patch merging's tensor, into timm's order."""
        return tensor


class TimmSwin(SwinLayout):
    """timm's Swin, whole or as a feature network."""

    key = "timm-swin"
    name = "timm Swin"
    example = "layers.N.blocks.M.attn.qkv.*, layers.1.downsample.*"
    attention = "attn.qkv"
    block_names = same_names("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", f"attn.{TABLE}")
    embedding = same_names("patch_embed.proj", "patch_embed.norm")
    merges_first = True
    unwritable = "its feature networks are written in timm's layout: use --to timm"

    def matches(self, parts: Parts) -> bool:
        """Match stages of which the first does not merge."""
        return super().matches(parts) and not _ends_with_merging(parts)


class MicrosoftSwin(TimmSwin):
    """The official Swin code, and SimMIM and GFM, which use it."""

    key = "swin"
    name = "Swin, SimMIM or GFM"
    example = "layers.N.blocks.M.attn.qkv.*, layers.0.downsample.*"
    merges_first = False
    unwritable = "its networks end with a norm, for which there are no weights; write timm's layout instead"

    def matches(self, parts: Parts) -> bool:
        """Match stages of which the first ends with patch merging."""
        return SwinLayout.matches(self, parts) and _ends_with_merging(parts)


class OpenMMLabSwin(SwinLayout):
    """`SwinTransformer` of mmsegmentation, mmdetection and mmpretrain."""

    key = "mmseg-swin"
    name = "mmsegmentation or mmpretrain Swin"
    example = "stages.N.blocks.M.attn.w_msa.*"
    unwritable = "its networks normalise the output of stages, for which there are no weights"
    stages = "stages"
    attention = "attn.w_msa"
    block_names = same_names("norm1", "norm2") | {
        "attn.w_msa.qkv": "attn.qkv",
        "attn.w_msa.proj": "attn.proj",
        f"attn.w_msa.{TABLE}": f"attn.{TABLE}",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }
    embedding = {"patch_embed.projection": "patch_embed.proj", "patch_embed.norm": "patch_embed.norm"}

    def reorder(self, tensor: torch.Tensor) -> torch.Tensor:
        """From (channel, row, column) of `nn.Unfold` to (column, row, channel)."""
        if tensor.shape[-1] % MERGED**2:
            raise CheckpointError(f"patch merging of {tensor.shape[-1]} channels, which are no four patches")
        return tensor.unflatten(-1, (-1, MERGED, MERGED)).transpose(-1, -3).flatten(-3)


class HuggingFaceSwin(SwinLayout):
    """`SwinModel` and `SwinBackbone` of transformers, as stored in files."""

    key = "huggingface-swin"
    name = "Hugging Face Swin"
    example = "encoder.layers.N.blocks.M.attention.self.query.*"
    unwritable = MicrosoftSwin.unwritable
    stages = "encoder.layers"
    attention = "attention.self.query"
    block_names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.self.query": "attn.query",
        "attention.self.key": "attn.key",
        "attention.self.value": "attn.value",
        f"attention.self.{TABLE}": f"attn.{TABLE}",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    embedding = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
    }


class HuggingFaceSwin5(HuggingFaceSwin):
    """The same models as in memory since transformers 5: `torch.save(model.state_dict(), ...)`."""

    key = "huggingface5-swin"
    example = "encoder.layers.N.blocks.M.attention.q_proj.*"
    attention = "attention.q_proj"
    block_names = HuggingFace5.block_names | {f"attention.relative_position_bias.{TABLE}": f"attn.{TABLE}"}


def _ends_with_merging(parts: Parts) -> bool:
    return any(re.match(rf"layers[._]0\.{MERGING}\.", key) for key in parts.encoder)


def _join(backbone: StateDict) -> StateDict:
    """Join queries, keys and values.

    Raises:
        CheckpointError: A block has only some of them.
    """
    joined = {k: v for k, v in backbone.items() if not _is_apart(k)}
    for key in filter(_is_apart, backbone):
        block, _, rest = key.partition(".attn.")
        names = [f"{block}.attn.{part}.{rest.partition('.')[2]}" for part in QUERY_KEY_VALUE]
        if missing := [name for name in names if name not in backbone]:
            raise CheckpointError(f"{', '.join(missing)} missing beside {key}: the file is incomplete")
        joined[f"{block}.attn.qkv.{rest.partition('.')[2]}"] = torch.cat([backbone[name] for name in names])
    return joined


def _is_apart(key: str) -> bool:
    return has_name(key.partition(".attn.")[2], QUERY_KEY_VALUE)
