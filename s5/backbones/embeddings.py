"""Resample the patch and positional embeddings of weights to other patches and images."""

import math

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed

from s5.backbones.contract import StateDict
from s5.errors import CheckpointError


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
