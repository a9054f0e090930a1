"""Adaptation of backbone weights to a model: position tables of other sizes, experts from dense FFNs.

Pure functions on state dicts under this package's names; unchanged tensors are shared, not copied.
"""

import math
from collections.abc import Sequence

import torch

from s5.models.vit import resample_positions

StateDict = dict[str, torch.Tensor]


class CheckpointError(ValueError):
    """A checkpoint cannot be read, understood or loaded."""


def drop_class_slot(table: torch.Tensor) -> torch.Tensor:
    """Drop the leading class slot of a position table (1, [1 +] n * n, C), if it has one.

    Raises:
        CheckpointError: Neither with nor without a class slot the grid is square.
    """
    length = table.shape[1]
    if math.isqrt(length) ** 2 == length:
        return table
    if math.isqrt(length - 1) ** 2 == length - 1:
        return table[:, 1:]
    raise CheckpointError(
        f"position table of {length} entries: not a square grid, with or without a class slot"
    )


def fit_positions(backbone: StateDict, grid: tuple[int, int]) -> StateDict:
    """Resample the position table to `grid` (rows, columns); a table of the right length is kept.

    Raises:
        CheckpointError: The length is another one and the table not square.
    """
    table = backbone["pos_embed"]
    length = table.shape[1]
    if length == grid[0] * grid[1]:
        return backbone
    side = math.isqrt(length)
    if side**2 != length:
        raise CheckpointError(f"position table of {length} entries: not a square grid, cannot be resampled")
    return backbone | {"pos_embed": resample_positions(table, (side, side), grid)}


def split_experts(backbone: StateDict, experts: Sequence[str], expert_channels: int) -> StateDict:
    """Turn dense FFNs into MoE ones that compute the same: each expert gets a copy of the last rows.

    Args:
        backbone: Weights of a dense backbone of width C.
        experts: Names of the tasks.
        expert_channels: Rows of the second linear layer that go to every expert; the first
            ``C - expert_channels`` go to the shared part, which is absent where that is none.
    """
    split = {}
    for key, value in backbone.items():
        if ".mlp.fc2." not in key:
            split[key] = value
            continue
        shared = len(value) - expert_channels
        if shared:
            split[key] = value[:shared]
        for name in experts:
            split[key.replace(".fc2.", f".experts.{name}.")] = value[shared:]
    return split
