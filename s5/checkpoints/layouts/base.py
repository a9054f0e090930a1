"""What a layout of checkpoints is: an adapter that recognises its keys and renames them to this package's.

All methods are pure: state dicts in, new state dicts out, tensors shared where unchanged.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from s5.checkpoints.layouts import published
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.layouts.published import BLOCK_KEY, has_name
from s5.checkpoints.layouts.published_detection import PARTS
from s5.checkpoints.resizing import CheckpointError, StateDict, drop_class_slot

# Layers before the blocks that a plain ViT does not have; without them the blocks would see other tokens.
BEFORE_BLOCKS = (
    "patch_embed.norm",
    "norm_pre",
    "pre_norm",
    "ln_pre",
    "rel_pos_bias",
    "rope",
    "channel_embed",
)
PATCH_EMBEDDING = "patch_embed.proj.weight"
IMAGE_AXES = 4  # of a patch embedding; of videos it has five
BLOCK_LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class OtherArchitectureError(CheckpointError):
    """A checkpoint that looked like a layout holds a network that is no plain ViT."""


@dataclass(frozen=True)
class Weights:
    """A converted checkpoint.

    Attributes:
        layout: Name of its layout.
        backbone: Backbone tensors under the names of `ViT`.
        heads: Head tensors under the names of `SegHead`, or of a detection head, by task.
        unused: Keys of the checkpoint that no model here has a place for.
        lacks: Beginnings of the names of `ViT` that the layout never has.
        notes: What was added to make the tensors complete.
    """

    layout: str
    backbone: StateDict
    heads: dict[str, StateDict]
    unused: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.backbone[PATCH_EMBEDDING].shape[0]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(_blocks(self.backbone), default=-1)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts; empty for a dense backbone."""
        return published.expert_names(self.backbone)


@dataclass(frozen=True)
class Parts:
    """A state dict taken apart at its encoder.

    Attributes:
        encoder: Tensors of the encoder, without its prefix.
        around: Tensors of the model that the encoder is a part of, without the model's prefix.
        outside: Other keys.
    """

    encoder: StateDict
    around: StateDict
    outside: tuple[str, ...]


class Layout:
    """A layout of checkpoints.

    Attributes:
        name: Its name in reports.
        example: Keys by which a user recognises it.
        lacks: See `Weights`.
        block: Pattern of a block's keys: its number, and the name in the block.
        block_names: Name in a block -> name here.
        names: Name of another tensor of the encoder -> name here.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    lacks: ClassVar[tuple[str, ...]] = ("pyramid.",)
    block: ClassVar[re.Pattern] = re.compile(r"^blocks\.(\d+)\.(.+)$")
    block_names: ClassVar[Mapping[str, str]]
    names: ClassVar[Mapping[str, str]]

    def matches(self, encoder: StateDict) -> bool:
        """Whether an encoder's keys are of this layout."""
        raise NotImplementedError

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Convert a checkpoint.

        Args:
            parts: The checkpoint.
            experts: See `s5.checkpoints.layouts.convert.convert`.

        Raises:
            CheckpointError: A block has a tensor that a plain ViT does not have, or lacks a part of one.
        """
        backbone, unused = self.rename(parts.encoder)
        backbone, notes = self.complete(backbone)
        heads, more = self.heads(parts.around)
        return Weights(self.name, backbone, heads, (*unused, *more, *parts.outside), self.lacks, notes)

    def rename(self, encoder: StateDict) -> tuple[StateDict, list[str]]:
        """The tensors that `ViT` has, under its names, and the keys of others.

        Raises:
            CheckpointError: A tensor would change what the blocks compute, and `ViT` has no place for it.
        """
        kept, unused = {}, []
        for key, value in encoder.items():
            match = self.block.match(key)
            names, inner = (self.block_names, match[2]) if match else (self.names, key)
            old = next((name for name in names if has_name(inner, (name,))), None)
            if old is not None:
                ours = names[old] + inner[len(old) :]
                kept[f"blocks.{match[1]}.{ours}" if match else ours] = value
            elif match or has_name(key, BEFORE_BLOCKS):
                name = guess(encoder)
                raise OtherArchitectureError(
                    f"the checkpoint has {key!r}, which a plain ViT does not have"
                    f"{f'; it looks like {name}' if name else ''}"
                )
            else:
                unused.append(key)
        _check_patch_embedding(kept.get(PATCH_EMBEDDING), self.name)
        if numbers := [key for key, value in kept.items() if not value.ndim]:
            raise CheckpointError(f"{numbers[0]} is a single number")
        return kept, unused

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Renamed tensors in the form that `ViT` has, and what there is to say of it."""
        positions = require_positions(backbone)
        backbone, notes = _with_zero_biases(backbone)
        return backbone | {"pos_embed": drop_class_slot(positions)}, notes

    def heads(self, around: StateDict) -> tuple[dict[str, StateDict], list[str]]:
        """Heads by task, by default those of this package, and the keys of other things."""
        heads: dict[str, StateDict] = {}
        unused = []
        for key, value in around.items():
            part, _, rest = key.partition(".")
            task, _, name = rest.partition(".")
            if part == "heads" and has_name(name, ("decode_head", "classifier", *PARTS)):
                heads.setdefault(task, {})[name] = value
            else:
                unused.append(key)
        return heads, unused


def same_names(*names: str) -> dict[str, str]:
    """Names of a layout that are the names here."""
    return dict(zip(names, names, strict=True))


def _blocks(backbone: StateDict) -> list[int]:
    return sorted({int(match[1]) for key in backbone if (match := BLOCK_KEY.match(key))})


def in_blocks(layout: Layout, encoder: StateDict, name: str) -> Iterator[str]:
    """Keys of a tensor or layer of that name in any block."""
    return (key for key in encoder if (match := layout.block.match(key)) and has_name(match[2], (name,)))


def _check_patch_embedding(weight: torch.Tensor | None, layout: str) -> None:
    if weight is None:
        raise OtherArchitectureError(
            f"the checkpoint has blocks as of {layout}, but its patch embedding has another name"
        )
    if weight.ndim != IMAGE_AXES:
        kind = " of a video model" if weight.ndim == IMAGE_AXES + 1 else ""
        raise OtherArchitectureError(
            f"the patch embedding{kind} has the shape {tuple(weight.shape)} instead of (width, channels, "
            f"patch, patch)"
        )


def require_positions(backbone: StateDict) -> torch.Tensor:
    """The positional embedding (1, entries, width).

    Raises:
        OtherArchitectureError: There is none, or it has another form.
    """
    if "pos_embed" not in backbone:
        raise OtherArchitectureError(
            "the checkpoint has no positional embedding (pos_embed), so it is another architecture"
        )
    table = backbone["pos_embed"]
    if table.ndim != 3 or len(table) != 1:
        raise OtherArchitectureError(
            f"the positional embedding has the shape {tuple(table.shape)} instead of (1, entries, width)"
        )
    return table


def join(backbone: StateDict, parts: Sequence[str | None], ours: str) -> StateDict:
    """Join tensors of every block along their first axis; None stands for zeros.

    Raises:
        CheckpointError: A block has some of them only.
    """
    joined = dict(backbone)
    for block in _blocks(backbone):
        found = {part: joined.pop(f"blocks.{block}.{part}", None) for part in parts if part}
        lacking = [part for part, tensor in found.items() if tensor is None]
        if len(lacking) == len(found):
            continue
        if lacking:
            raise CheckpointError(
                f"block {block} has no {' and no '.join(lacking)}, but other parts of the same layer: the "
                f"file is incomplete"
            )
        tensors = {part: tensor for part, tensor in found.items() if tensor is not None}
        if len({tensor.shape for tensor in tensors.values()}) > 1:
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in tensors.items())
            raise CheckpointError(f"block {block} has parts of one layer of different shapes: {shapes}")
        zero = torch.zeros_like(next(iter(tensors.values())))
        joined[f"blocks.{block}.{ours}"] = torch.cat([tensors[part] if part else zero for part in parts])
    return joined


def _with_zero_biases(backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
    """Zeros for the biases of layers that have none in the whole checkpoint, which compute the same."""
    layers = {"patch_embed.proj": ["patch_embed.proj"]}
    layers |= {name: [f"blocks.{block}.{name}" for block in _blocks(backbone)] for name in BLOCK_LINEARS}
    without = [
        name for name, places in layers.items() if not any(f"{place}.bias" in backbone for place in places)
    ]
    zeros = {
        f"{place}.bias": torch.zeros(weight.shape[:1], dtype=weight.dtype)
        for name in without
        for place in layers[name]
        if (weight := backbone.get(f"{place}.weight")) is not None
    }
    notes = (f"no biases of {', '.join(without)} in the checkpoint: zero",) if zeros else ()
    return backbone | zeros, notes
