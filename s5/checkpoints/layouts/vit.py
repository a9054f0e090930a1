"""Layouts of plain ViTs: tables of names, and other differences between them."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch

from s5.backbones import PATCH_EMBEDDING, StateDict, adapter_names
from s5.checkpoints.layouts.base import (
    BLOCK_KEY,
    Layout,
    OtherArchitectureError,
    Parts,
    Weights,
    Written,
    block_numbers,
    has_name,
    head_names,
    require_dense,
)
from s5.checkpoints.layouts.foreign import guess
from s5.errors import CheckpointError, shorten

MAX_CLASS_SLOTS = 2  # class token, and DeiT's distillation token
# Layers before the blocks that a plain ViT does not have; without them the blocks would get other inputs.
BEFORE_BLOCKS = (
    "patch_embed.norm",
    "norm_pre",
    "pre_norm",
    "ln_pre",
    "rel_pos_bias",
    "rope",
    "channel_embed",
)
IMAGE_AXES = 4  # dimensions of a patch embedding's weight; five in video models
BLOCK_LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
BLOCK_LAYERS = ("norm1", "norm2", *BLOCK_LINEARS)


class VitLayout(Layout):
    """A layout of a plain ViT without pyramid and heads.

    Attributes:
        blocks: Prefix of a block's keys, before its number.
        block_names: Names in a block, mapped to those of this package.
        names: Names of the encoder's other tensors, mapped to those of this package.
        class_slot: Whether the positional embedding has a slot for the class token even in a network without
            one.
    """

    lacks: ClassVar[tuple[str, ...]] = ("pyramid.",)
    blocks: ClassVar[str] = "blocks"
    block_names: ClassVar[Mapping[str, str]]
    names: ClassVar[Mapping[str, str]]
    class_slot: ClassVar[bool] = False

    @cached_property
    def block_key(self) -> re.Pattern:
        """Pattern of a block's keys; its groups are the number and the name in the block."""
        return re.compile(rf"^{re.escape(self.blocks)}\.(\d+)\.(.+)$")

    def in_blocks(self, parts: Parts, name: str = "") -> bool:
        """Whether any block has a tensor or layer of that name; without a name, whether there are blocks."""
        inner = (match[2] for key in parts.encoder if (match := self.block_key.match(key)))
        return any(not name or has_name(key, (name,)) for key in inner)

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Rename the tensors of a plain ViT and complete them; see `Layout.to_ours`."""
        backbone, unused = self.rename(parts.encoder)
        check_form(backbone)
        backbone, notes = self.complete(backbone)
        return Weights(self.name, backbone, {}, (*unused, *parts.around, *parts.outside), self.lacks, notes)

    def from_ours(self, weights: Weights) -> Written:
        """Rename the tensors of a plain ViT; pyramid and heads are left out."""
        if self.unwritable:
            return super().from_ours(weights)
        require_complete(weights)
        require_dense(weights, self.name)
        backbone, positions = dict(weights.backbone), weights.backbone["pos_embed"]
        length = positions.shape[1]
        if math.isqrt(length) ** 2 != length:
            raise CheckpointError(
                f"positional embedding of {length} entries: not a square grid, which {self.name} needs"
            )
        left_out = []
        if self.class_slot:
            backbone["pos_embed"] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
        elif backbone.pop("cls_token", None) is not None:
            left_out.append("cls_token")
        state, more = self.rename_back(backbone)
        return Written(state, (*left_out, *more, *head_names(weights)), (self.usage,))

    def rename(self, encoder: StateDict) -> tuple[StateDict, list[str]]:
        """Return the tensors of a plain ViT under the names of this package, and all other keys.

        Raises:
            OtherArchitectureError: There is no patch embedding, or a tensor that a plain ViT does not have
                would change the output of the blocks.
        """
        kept, unused = {}, []
        for key, value in encoder.items():
            match = self.block_key.match(key)
            names, inner = (self.block_names, match[2]) if match else (self.names, key)
            own_name = replace_start(inner, names)
            if own_name is not None:
                kept[f"blocks.{match[1]}.{own_name}" if match else own_name] = value
            elif match or has_name(key, BEFORE_BLOCKS):
                name = guess(encoder)
                raise OtherArchitectureError(
                    f"the checkpoint has {key!r}, which a plain ViT does not have"
                    f"{f'; it looks like {name}' if name else ''}"
                )
            else:
                unused.append(key)
        if PATCH_EMBEDDING not in kept:
            raise OtherArchitectureError(
                f"the checkpoint has the blocks of {self.name}, but its patch embedding has another name"
            )
        return kept, unused

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Complete renamed tensors as needed by this package's backbone; also returns notes on additions."""
        if "pos_embed" not in backbone:
            raise OtherArchitectureError(
                "the checkpoint has no positional embedding (pos_embed), so it has another architecture"
            )
        places, width = backbone["pos_embed"].shape[-1], len(backbone[PATCH_EMBEDDING])
        if places != width:
            raise OtherArchitectureError(
                f"the positional embedding has width {places}, the patch embedding {width}: its network adds "
                f"something else as well, such as the dates in SatMAE's temporal model"
            )
        backbone, notes = _with_zero_biases(backbone)
        return backbone | {"pos_embed": drop_class_slot(backbone["pos_embed"])}, notes

    def rename_back(self, backbone: StateDict) -> tuple[StateDict, list[str]]:
        """Return the tensors under the layout's names, and the names of those that it cannot represent.

        Raises:
            CheckpointError: The backbone has a tensor that a plain ViT does not have.
        """
        if tasks := adapter_names(backbone):
            raise CheckpointError(
                f"{self.name} has no LoRA adapters, but the backbone has some for {', '.join(tasks)}: merge "
                f"those of one task (--task)"
            )
        names, block_names = inverse(self.names), inverse(self.block_names)
        state, left_out = {}, []
        for key, value in backbone.items():
            match = BLOCK_KEY.match(key)
            foreign_name = replace_start(match[2], block_names) if match else replace_start(key, names)
            if foreign_name is not None:
                state[f"{self.blocks}.{match[1]}.{foreign_name}" if match else foreign_name] = value
            elif key.startswith("pyramid."):
                left_out.append(key)
            else:
                raise CheckpointError(f"the backbone has {key!r}, for which {self.name} has no name")
        return state, left_out


def same_names(*names: str) -> dict[str, str]:
    """Create a table of names that a layout shares with this package."""
    return dict(zip(names, names, strict=True))


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """Invert a table of names."""
    return {new: old for old, new in names.items()}


def replace_start(key: str, names: Mapping[str, str]) -> str | None:
    """Replace the name that a key equals or starts with; None if it is not in `names`."""
    old = next((name for name in names if has_name(key, (name,))), None)
    return None if old is None else names[old] + key[len(old) :]


def check_form(backbone: StateDict) -> None:
    """Check the number of dimensions of those tensors of a ViT that the conversion relies on.

    Raises:
        CheckpointError: A tensor has another number of dimensions.
    """
    if numbers := [key for key, value in backbone.items() if not value.ndim]:
        raise CheckpointError(f"{numbers[0]} is a single number")
    patches, table = backbone.get(PATCH_EMBEDDING), backbone.get("pos_embed")
    if patches is not None and patches.ndim != IMAGE_AXES:
        kind = " of a video model" if patches.ndim == IMAGE_AXES + 1 else ""
        raise OtherArchitectureError(
            f"the patch embedding{kind} has the shape {tuple(patches.shape)} instead of (width, channels, "
            f"patch, patch)"
        )
    if table is not None and (table.ndim != 3 or len(table) != 1):
        raise OtherArchitectureError(
            f"the positional embedding has the shape {tuple(table.shape)} instead of (1, entries, width)"
        )


def require_complete(weights: Weights) -> None:
    """Check that every block of a ViT has the layers of a plain ViT, with the same shapes in all blocks.

    Raises:
        CheckpointError: Tensors are missing or differ; names them.
    """
    backbone = weights.backbone
    if not weights.depth or PATCH_EMBEDDING not in backbone:
        raise CheckpointError("the backbone is not a plain ViT, the only architecture of this layout")
    layers = BLOCK_LAYERS[:-1] if weights.experts else BLOCK_LAYERS  # experts can replace the last layer
    shapes: dict[str, torch.Size | None] = {
        f"{layer}.{kind}": None for layer in layers for kind in ("weight", "bias")
    }
    for key, value in backbone.items():
        match = BLOCK_KEY.match(key)
        if match and has_name(match[2], (*BLOCK_LAYERS, "mlp.experts")) and shapes.get(match[2]) is None:
            shapes[match[2]] = value.shape
    names = ("pos_embed", PATCH_EMBEDDING, "patch_embed.proj.bias")
    problems = [f"{name} is missing" for name in names if name not in backbone]
    for block in range(weights.depth):
        for name, shape in shapes.items():
            tensor = backbone.get(f"blocks.{block}.{name}")
            if tensor is None:
                problems.append(f"blocks.{block}.{name} is missing")
            elif tensor.shape != shape:
                problems.append(f"blocks.{block}.{name} has a different shape than in other blocks")
    if problems:
        raise CheckpointError(f"the weights are incomplete: {shorten(problems)}")


def join(backbone: StateDict, parts: Sequence[str | None], name: str) -> StateDict:
    """Concatenate tensors of every block along their first dimension; None stands for zeros.

    Raises:
        CheckpointError: A block has only some of the tensors, or their shapes differ.
    """
    joined = dict(backbone)
    for block in block_numbers(backbone):
        by_part = {part: joined.pop(f"blocks.{block}.{part}", None) for part in parts if part}
        missing = [part for part, tensor in by_part.items() if tensor is None]
        if len(missing) == len(by_part):
            continue
        if missing:
            raise CheckpointError(
                f"block {block} has no {' and no '.join(missing)}, but other parts of the same layer: the "
                f"file is incomplete"
            )
        tensors = {part: tensor for part, tensor in by_part.items() if tensor is not None}
        if len({tensor.shape for tensor in tensors.values()}) > 1:
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in tensors.items())
            raise CheckpointError(f"block {block} has parts of one layer of different shapes: {shapes}")
        zero = torch.zeros_like(next(iter(tensors.values())))
        joined[f"blocks.{block}.{name}"] = torch.cat([tensors[part] if part else zero for part in parts])
    return joined


def _with_zero_biases(backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
    """Add zero biases, which are equivalent, to layers that have no bias in any block."""
    layers = {"patch_embed.proj": ["patch_embed.proj"]}
    layers |= {
        name: [f"blocks.{block}.{name}" for block in block_numbers(backbone)] for name in BLOCK_LINEARS
    }
    without = [
        name for name, copies in layers.items() if not any(f"{layer}.bias" in backbone for layer in copies)
    ]
    zeros = {
        f"{layer}.bias": torch.zeros(weight.shape[:1], dtype=weight.dtype)
        for name in without
        for layer in layers[name]
        if (weight := backbone.get(f"{layer}.weight")) is not None
    }
    notes = (f"no biases of {', '.join(without)} in the checkpoint: set to zero",) if zeros else ()
    return backbone | zeros, notes


def drop_class_slot(table: torch.Tensor) -> torch.Tensor:
    """Drop the leading slots of a positional embedding (1, slots + n * n, C) that belong to no patch.

    These are for the class token and, in DeiT, the distillation token.

    Raises:
        CheckpointError: The grid is not square, with no, one or two slots dropped.
    """
    length = table.shape[1]
    for slots in range(MAX_CLASS_SLOTS + 1):
        if math.isqrt(length - slots) ** 2 == length - slots:
            return table[:, slots:] if slots else table
    raise CheckpointError(
        f"positional embedding of {length} entries: not a square grid, with or without a class slot"
    )
