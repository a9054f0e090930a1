"""Resample the patch and positional embeddings of weights to other patches and images."""

import math

import torch
import torch.nn.functional as F
from timm.layers import (
    resample_abs_pos_embed,
    resample_abs_pos_embed_nhwc,
    resample_patch_embed,
    resize_rel_pos_bias_table,
    resize_rel_pos_bias_table_levit,
)
from timm.models.nest import resize_pos_embed

from s5.backbones.contract import StateDict
from s5.errors import CheckpointError

RELATIVE_POSITIONS = "relative_position_bias_table"
ABSOLUTE_POSITIONS = ("pos_embed", "patch_pos")  # names in timm
ATTENTION_BIASES = "attention_biases"  # of LeViT and its relatives


def resample_positions(table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Resample a positional embedding bicubically to another grid (no antialias, corners not aligned).

    Args:
        table: (1, h * w, C) for `grid` = (h, w).
        grid: Rows and columns of the current grid.
        new_grid: Rows and columns of the new grid.

    Returns:
        (1, h' * w', C) with the dtype of `table`; `table` itself if the grids are equal.
    """
    exported = any(isinstance(side, torch.SymInt) for side in new_grid)  # one graph for any size
    if not exported and grid == new_grid:
        return table
    maps = table.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, C, h, w)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(table.dtype)


def fit_positions(tensors: StateDict, grid: tuple[int, int]) -> StateDict:
    """Resample the positional embedding to `grid` (rows, columns) unless it has the right length.

    Raises:
        CheckpointError: There is no positional embedding, or it needs resampling and its grid is not square.
    """
    if "pos_embed" not in tensors:
        raise CheckpointError("the checkpoint has no positional embedding (pos_embed)")
    table = tensors["pos_embed"]
    length = table.shape[1]
    if length == grid[0] * grid[1]:
        return tensors
    side = math.isqrt(length)
    if side**2 != length:
        raise CheckpointError(
            f"positional embedding of {length} entries: not a square grid, cannot be resampled"
        )
    return tensors | {"pos_embed": resample_positions(table, (side, side), grid)}


def fit_patches(tensors: StateDict, name: str, side: int) -> tuple[StateDict, list[str]]:
    """Resample a patch embedding to another patch, as in FlexiViT (arXiv 2212.08013).

    It then computes the same from an image that is resized as its patches are.

    Args:
        tensors: Weights of a ViT.
        name: Name of the patch embedding (C, bands, height, width) among them.
        side: Side of the new patch in pixels.

    Returns:
        The weights, and a note if the patch has changed.
    """
    weight = tensors[name]
    if weight.shape[-2:] == (side, side):
        return tensors, []
    resampled = resample_patch_embed(weight.float(), [side, side]).to(weight.dtype)
    note = f"patch embedding of {weight.shape[-2]}x{weight.shape[-1]} pixels resampled to {side}x{side}"
    return tensors | {name: resampled}, [note]


def fit_positions_of(
    name: str, table: torch.Tensor, shape: torch.Size, window: tuple[int, int] | None
) -> tuple[torch.Tensor, str] | None:
    """Resample positions in a network of timm for another square grid, as timm does.

    Args:
        name: Name of the tensor.
        table: Positions of some weights; their form follows from the name and the number of dimensions.
        shape: Shape in the network.
        window: Rows and columns of the network's relative positions.

    Returns:
        Positions of this shape and a note; None if they have another form, or are not positions.

    Raises:
        CheckpointError: The positions are not of a square grid.
    """
    kind, absolute = name.rpartition(".")[2], False
    if table.ndim != len(shape):
        return None
    if kind == RELATIVE_POSITIONS and table.ndim == 2 and table.shape[1] == shape[1] and window:
        extra = shape[0] - (2 * window[0] - 1) * (2 * window[1] - 1)  # of a class token
        old, new = (math.isqrt(len(table) - extra) + 1) // 2, window[0]
        if (2 * old - 1) ** 2 != len(table) - extra:
            raise CheckpointError(f"{name} of {len(table)} entries: not of a square window")
        fitted = resize_rel_pos_bias_table(table, window, shape)
    elif kind == ATTENTION_BIASES and len(table) == shape[0]:
        old, new = math.isqrt(table.shape[1]), math.isqrt(shape[1])
        fitted = resize_rel_pos_bias_table_levit(table.T, shape[::-1]).T.contiguous()
    elif kind in ABSOLUTE_POSITIONS and table.shape[-1] == shape[-1]:
        absolute = True
        fitted, old, new = _absolute(name, table, shape)
    else:
        return None
    form = "positional embedding" if absolute else "relative positions"
    return fitted, f"{form} resampled: {'grids' if absolute else 'windows'} of {old} to {new}"


def _absolute(name: str, table: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, int, int]:
    """Resample (1, tokens + h * w, C), (1, h, w, C), or (1, blocks, n, C); also return both sides."""
    sides = [math.isqrt(sizes[-2]) for sizes in (table.shape, shape)]
    if table.ndim == 4 and table.shape[1] == shape[1]:  # of NesT, whose blocks have n pixels each
        return resize_pos_embed(table, torch.empty(shape, device="meta")), *sides
    if table.ndim == 4:
        return resample_abs_pos_embed_nhwc(table, [*shape[1:3]]), table.shape[1], shape[1]
    prefixes = {length - side**2 for length, side in zip((table.shape[1], shape[1]), sides, strict=True)}
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{name} of {table.shape[1]} entries, in the model {shape[1]}: not square grids of patches with "
            f"the same tokens in front, cannot be resampled"
        )
    fitted = resample_abs_pos_embed(table, [sides[1]] * 2, num_prefix_tokens=prefixes.pop())
    return fitted, *sides
