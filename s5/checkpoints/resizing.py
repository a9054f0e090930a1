"""Adaptation of backbone weights to a model: positional embeddings of other sizes, bands, experts.

Pure functions on state dicts under this package's names; unchanged tensors are shared, not copied.
"""

import math
from collections.abc import Sequence

import torch

from s5.backbones.vit import resample_positions
from s5.errors import CheckpointError

StateDict = dict[str, torch.Tensor]
MAX_SLOTS = 2


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


def select_bands(weight: torch.Tensor, bands: Sequence[int]) -> torch.Tensor:
    """The patch embedding of some of the channels of a checkpoint.

    A channel that is named k times is divided by k, so that an image of equal channels gives what it gave.

    Args:
        weight: (C, channels, patch, patch).
        bands: Channel numbers from 1, in the order red, green, blue.

    Raises:
        CheckpointError: The checkpoint has fewer channels.
    """
    channels = weight.shape[1]
    if max(bands) > channels:
        raise CheckpointError(
            f"init_bands {','.join(map(str, bands))}: the checkpoint's patch embedding has "
            f"{f'{channels} channels, 1 to {channels}' if channels > 1 else 'one channel: 1,1,1 takes it'}"
        )
    repeats = torch.tensor([bands.count(band) for band in bands], dtype=weight.dtype)
    chosen = weight[:, [band - 1 for band in bands]]
    return chosen if len(set(bands)) == len(bands) else chosen / repeats.view(1, -1, 1, 1)


def fit_positions(backbone: StateDict, grid: tuple[int, int]) -> StateDict:
    """Resample the positional embedding to `grid` (rows, columns); one of the right length is kept.

    Raises:
        CheckpointError: The length is another one and its grid not square.
    """
    table = backbone["pos_embed"]
    length = table.shape[1]
    if length == grid[0] * grid[1]:
        return backbone
    side = math.isqrt(length)
    if side**2 != length:
        raise CheckpointError(
            f"positional embedding of {length} entries: not a square grid, cannot be resampled"
        )
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
