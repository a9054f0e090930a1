"""What all modules on checkpoints share: state dicts, their error, and the slots of positional embeddings."""

import math

import torch

from s5.backbones.contract import StateDict, WeightsError

__all__ = ["CheckpointError", "StateDict", "drop_class_slot"]

MAX_SLOTS = 2


class CheckpointError(WeightsError):
    """A checkpoint cannot be read, understood or loaded."""


def drop_class_slot(table: torch.Tensor) -> torch.Tensor:
    """Drop the leading slots of a positional embedding (1, slots + n * n, C) that belong to no patch.

    These are the class token's and, in DeiT, the distillation token's.

    Raises:
        CheckpointError: With none, one or two slots left out, the grid is not square.
    """
    length = table.shape[1]
    for slots in range(MAX_SLOTS + 1):
        if math.isqrt(length - slots) ** 2 == length - slots:
            return table[:, slots:] if slots else table
    raise CheckpointError(
        f"positional embedding of {length} entries: not a square grid, with or without a class slot"
    )
