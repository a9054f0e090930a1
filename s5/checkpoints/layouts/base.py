"""The contract of a checkpoint layout: one adapter per project, which recognises, reads and writes its files.

Adapters are pure: state dicts in, new state dicts out, unchanged tensors shared. They know names and forms of
tensors; whether weights fit a model is decided by :mod:`s5.checkpoints.loading`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from s5.backbones import StateDict
from s5.backbones.moe import expert_names
from s5.errors import CheckpointError

PATCH_EMBEDDING = "patch_embed.proj.weight"
BLOCK_KEY = re.compile(r"^blocks\.(\d+)\.(.+)$")


class OtherArchitectureError(CheckpointError):
    """A checkpoint that was recognised as a layout holds a network that the layout does not cover."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint under the names of this package.

    Attributes:
        layout: Name of the layout it was read from.
        backbone: Backbone tensors.
        heads: Head tensors under the names of `SegHead`, or of a detection head, by task.
        unused: Keys of the checkpoint that no model here has.
        lacks: Prefixes of the backbone's names that the layout never has.
        notes: What was added to make the tensors complete.
    """

    layout: str
    backbone: StateDict
    heads: dict[str, StateDict]
    unused: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of blocks of a ViT; 0 for other backbones."""
        return 1 + max(block_numbers(self.backbone), default=-1)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts; empty for a dense backbone."""
        return expert_names(self.backbone)


@dataclass(frozen=True)
class Parts:
    """The state dict of a checkpoint, split at its encoder.

    Attributes:
        encoder: Tensors of the encoder, without its prefix.
        around: Other tensors of the model that contains the encoder, without the model's prefix.
        outside: Other keys.
        ours: Whether heads by task or metadata say that the file is this package's.
    """

    encoder: StateDict
    around: StateDict
    outside: tuple[str, ...]
    ours: bool = False


@dataclass(frozen=True)
class Written:
    """Weights in the layout of a project.

    Attributes:
        state: Tensors under the project's names.
        left_out: Names of this package that the layout has no place for.
        notes: What the names of the layout do not say.
    """

    state: StateDict
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Layout(ABC):
    """A checkpoint layout.

    Attributes:
        key: Its name on the command line.
        name: Its name in reports.
        example: Keys by which a user recognises it.
        lacks: See `Weights`.
        container: Key of a file that holds the state dict; empty where the file is the state dict.
        usage: How to build the network that takes a file of the layout; shown after writing one.
        unwritable: Why the layout cannot be written; empty where it can.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    example: ClassVar[str]
    lacks: ClassVar[tuple[str, ...]] = ()
    container: ClassVar[str] = "state_dict"
    usage: ClassVar[str] = ""
    unwritable: ClassVar[str] = ""

    @abstractmethod
    def matches(self, parts: Parts) -> bool:
        """Whether a checkpoint is of this layout."""

    @abstractmethod
    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Convert a checkpoint to the names of this package.

        Args:
            parts: The checkpoint.
            experts: See :func:`s5.checkpoints.layouts.convert`.

        Raises:
            CheckpointError: A tensor has another form, or a part of a layer is missing.
        """

    def from_ours(self, weights: Weights) -> Written:
        """Convert weights under the names of this package to the layout.

        Raises:
            CheckpointError: The layout cannot be written, cannot hold these weights, or they are incomplete.
        """
        raise CheckpointError(f"{self.name} cannot be written: {self.unwritable}")


def has_name(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of `names` or starts with one of them and a dot."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def block_numbers(backbone: StateDict) -> list[int]:
    """Numbers of the blocks of a ViT under the names here, ascending."""
    return sorted({int(match[1]) for key in backbone if (match := BLOCK_KEY.match(key))})
