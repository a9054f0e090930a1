"""The interface of a checkpoint layout: an adapter per project that recognises, reads and writes its files.

Adapters are pure functions of state dicts; unchanged tensors are shared. They handle names and shapes of
tensors; :mod:`s5.checkpoints.loading` decides whether weights fit a model.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from s5.backbones import StateDict, expert_names
from s5.errors import CheckpointError

BLOCK_KEY = re.compile(r"^blocks\.(\d+)\.(.+)$")


class OtherArchitectureError(CheckpointError):
    """A checkpoint matches a layout, but contains an architecture that the layout does not support."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint under the names of this package.

    Attributes:
        layout: Name of the layout it was read from.
        backbone: Tensors of the backbone.
        heads: Tensors of the heads by task, under the names of `SegHead` or of a detection head.
        unused: Keys of the checkpoint that correspond to nothing in this package.
        lacks: Prefixes of the backbone's names that are never part of the layout.
        notes: Notes on tensors that were added.
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
        ours: Whether heads by task or metadata show that the file is from this package.
    """

    encoder: StateDict
    around: StateDict
    outside: tuple[str, ...]
    ours: bool = False


@dataclass(frozen=True)
class Written:
    """Weights converted to the layout of a project.

    Attributes:
        state: Tensors under the project's names.
        left_out: Names of this package that the layout cannot represent.
        notes: Information that is lost in the layout, and how to use the file.
    """

    state: StateDict
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Layout(ABC):
    """A checkpoint layout.

    Attributes:
        key: Name on the command line.
        name: Name in reports.
        example: Typical keys of a state dict.
        lacks: See `Weights`.
        container: Key of the state dict in a file; empty if the file is the state dict itself.
        usage: How to build a network that loads a file of the layout; shown after writing one.
        unwritable: Why the layout cannot be written; empty if it can.
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
        """Whether a checkpoint has this layout."""

    @abstractmethod
    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Convert a checkpoint to the names of this package.

        Args:
            parts: The checkpoint.
            experts: See :func:`s5.checkpoints.layouts.convert`.

        Raises:
            CheckpointError: A tensor has an unexpected shape, or a part of a layer is missing.
        """

    def from_ours(self, weights: Weights) -> Written:
        """Convert weights under the names of this package to the layout.

        Raises:
            CheckpointError: The layout cannot be written or cannot represent these weights, or they are
                incomplete.
        """
        raise CheckpointError(f"{self.name} cannot be written: {self.unwritable}")


def require_dense(weights: Weights, layout: str) -> None:
    """Check that a backbone has no experts, for layouts that have no names for them.

    Raises:
        CheckpointError: It has experts; names their tasks.
    """
    if weights.experts:
        raise CheckpointError(
            f"{layout} has no experts, but the backbone has some for {', '.join(weights.experts)}"
        )


def head_names(weights: Weights) -> list[str]:
    """Names of the tensors of the heads in a full model of this package."""
    return [f"heads.{task}.{key}" for task, head in weights.heads.items() for key in head]


def has_name(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of `names` or starts with one of them and a dot."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def block_numbers(backbone: StateDict) -> list[int]:
    """Numbers of the blocks of a ViT under the names of this package, ascending."""
    return sorted({int(match[1]) for key in backbone if (match := BLOCK_KEY.match(key))})
