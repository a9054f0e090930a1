"""ViT with rotated varied-size window attention (RVSA, arXiv 2208.03987), as used by MTP (arXiv 2403.13430).

Most blocks attend within windows of 7 x 7 tokens. For each window and attention head, small networks predict
the offset, scale and angle of the window in which keys and values are sampled bilinearly; queries stay where
they are. Every third (ViT-B) or sixth (ViT-L) block attends globally. Relative positions are added to the
scores: in both kinds of blocks, products of the query with an embedding of the distance in rows and with one
of the distance in columns; in windows also a bias per pair of tokens and head.

Parameters have the published names. Two properties of the published function are easily missed: in windows,
relative positions are multiplied with queries that are not scaled by 1 / sqrt(D), unlike in global attention;
and windows at the border also attend to padding, whose keys and values are zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import gen_relative_position_index
from timm.models.vision_transformer import Attention
from torch import nn

from s5.backbones.contract import Backbone, StateDict
from s5.backbones.embeddings import resample_positions
from s5.backbones.vit import BLOCK, INIT_STD, ROTATED, Variant, ViT, form_of

Grid = tuple[int, int]
WINDOW_PARTS = (
    "attn.rel_pos_h",
    "attn.rel_pos_w",
    "attn.relative_position_bias_table",
    "attn.sampling_offsets.2",
    "attn.sampling_scales.2",
    "attn.sampling_angles.2",
)
GLOBAL_PARTS = ("attn.full_attn_rel_pos_h", "attn.full_attn_rel_pos_w")
"""Names, in a block with window attention and in one with global attention, that a plain ViT lacks."""


@dataclass(frozen=True)
class RvsaVariant(Variant):
    """Architecture of a ViT with RVSA.

    Attributes:
        global_every: Every block of this number, counted from 1, attends globally.
        window: Side of a window in tokens.
    """

    global_every: int = 3
    window: int = 7
    any_size_graph = False

    @property
    def form(self) -> str:  # type: ignore[override]
        """That of a plain ViT, and the kind of windows."""
        return super().form + ROTATED

    def build(self, img_size: int | tuple[int, int], **options: Any) -> "RvsaViT":
        """See the base class."""
        return RvsaViT(self, img_size, **options)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether width, depth and patch are equal; weights of a plain ViT fit as well."""
        return form_of(tensors) in (self.form, super().form)


RVSA_VARIANTS: dict[str, RvsaVariant] = {
    variant.name: variant
    for variant in (
        RvsaVariant("vit_b_rvsa", 768, 12, 12, (3, 5, 7, 11), timm="vit_base_patch16_224"),
        RvsaVariant(
            "vit_l_rvsa", 1024, 24, 16, (7, 11, 15, 23), timm="vit_large_patch16_224", global_every=6
        ),
    )
}
"""Registered sizes by name."""


class RvsaViT(ViT):
    """ViT with RVSA, dense or with experts. It has no class token."""

    inert = ()
    variant: RvsaVariant

    def __init__(self, variant: RvsaVariant, img_size: int | Grid = 512, **options: Any) -> None:
        """Build the backbone with randomly initialised weights; arguments as for `ViT`.

        Windows start where they are without RVSA, since all that moves them is zero.
        """
        super().__init__(variant, img_size, **options)
        self.register_parameter("cls_token", None)
        tables = ("rel_pos_h", "rel_pos_w", "relative_position_bias_table")
        self.undecayed = (
            "pos_embed",
            *(name for name, _ in self.named_parameters() if name.endswith(tables)),
        )

    def build_attention(self, index: int) -> nn.Module:
        """See the base class."""
        width, heads = self.variant.width, self.variant.heads
        if (index + 1) % self.variant.global_every:
            return WindowAttention(width, heads, self.variant.window)
        return GlobalAttention(width, heads, self.grid)

    def compile_blocks(self, *args: Any, **options: Any) -> None:
        """See the base class; not supported, because every size of image would need graphs of its own."""
        Backbone.compile_blocks(self, *args, **options)

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """See the base class; adds what a plain ViT lacks, and resamples the tables of global attention."""
        tensors, notes = super().fit_weights(tensors, bands)
        if ROTATED not in (form_of(tensors) or ""):
            added = {name: value for name, value in self.state_dict().items() if is_rvsa(name)}
            tensors = {name: value for name, value in tensors.items() if name != "cls_token"} | added
            notes.append(f"weights of a plain ViT: {len(added)} tensors of RVSA are those of the model")
        resampled = {}
        for name, table in tensors.items():
            side = self.grid[0 if name.endswith("_h") else 1]
            if name.endswith(GLOBAL_PARTS) and table.ndim == 2 and len(table) != 2 * side - 1:
                resampled[name] = resample_distances(table, side)
        if resampled:
            rows, columns = self.grid
            notes.append(f"relative positions of global attention resampled to {rows}x{columns}")
        return tensors | resampled, notes


class WindowAttention(Attention):
    """Attention within windows, whose keys and values come from moved, scaled and rotated windows."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        """Build the layer for tokens of `width` channels and windows of `window` x `window` tokens."""
        super().__init__(width, heads, qkv_bias=True)
        self.window = window
        distances = 2 * window - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(distances, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(distances, self.head_dim))
        self.relative_position_bias_table = nn.Parameter(torch.empty(distances**2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)
        self.sampling_offsets = _predictor(width, 2 * heads, window)
        self.sampling_scales = _predictor(width, 2 * heads, window)
        self.sampling_angles = _predictor(width, heads, window)
        # Not stored: it follows from the size of the window.
        self.relative_position_index: torch.Tensor
        index = gen_relative_position_index((window, window))
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:  # type: ignore[override]
        """Attend within windows.

        Args:
            tokens: (B, N, C), N = rows * columns.
            grid: Rows and columns.
        """
        (batch, length, width), window = tokens.shape, self.window
        left, right, top, bottom = pads = _pads(grid, window)
        rows, columns = grid[0] + top + bottom, grid[1] + left + right

        qkv = self.qkv(tokens).view(batch, *grid, 3, self.num_heads, self.head_dim)
        qkv = F.pad(qkv, (0, 0, 0, 0, 0, 0, *pads))  # (B, rows, columns, 3, heads, D)
        windows = qkv[..., 0, :, :].unflatten(2, (-1, window)).unflatten(1, (-1, window))
        queries = windows.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 2)  # (B * windows, heads, w, w, D)
        points = self.sampling_points(tokens, grid).flatten(0, 1)  # (B * heads, windows, w * w, 2)
        keys, values = self._sample(qkv[..., 1:, :, :], points)
        bias = self._bias(queries)
        out = F.scaled_dot_product_attention(queries.flatten(2, 3), keys, values, bias, scale=self.scale)

        out = out.view(batch, rows // window, columns // window, self.num_heads, window, window, -1)
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, rows, columns, width)
        out = out[:, top : top + grid[0], left : left + grid[1]].reshape(batch, length, width)
        return self.proj(out)

    def sampling_points(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Where keys and values are sampled: x and y from -1 to 1 over the padded tokens.

        Predicted and computed in at least single precision, under autocast too: in bfloat16, a point would
        miss its place by up to a fifteenth of a token on a grid of 64.

        Args:
            tokens: (B, N, C).
            grid: Rows and columns.

        Returns:
            (B, heads, windows, w * w, 2).
        """
        window, heads = self.window, self.num_heads
        left, right, top, bottom = pads = _pads(grid, window)
        with torch.autocast(tokens.device.type, enabled=False):
            maps = tokens.to(self.rel_pos_h.dtype).transpose(1, 2).unflatten(2, grid)
            maps = F.pad(maps, pads)  # (B, C, rows, columns)
            precision = torch.promote_types(maps.dtype, torch.float32)
            offsets, scales, angles = (
                predict(maps).to(precision).flatten(2).unflatten(1, (heads, -1)).unsqueeze(-1)
                for predict in (self.sampling_offsets, self.sampling_scales, self.sampling_angles)
            )  # (B, heads, 2 or 1, windows, 1)
            y, y_within = _coordinates(grid[0] + top + bottom, window, maps.device, precision)
            x, x_within = _coordinates(grid[1] + left + right, window, maps.device, precision)
            centers = torch.stack((x.repeat(len(y)), y.repeat_interleave(len(x))))[..., None]
            within = torch.stack((x_within.repeat(window), y_within.repeat_interleave(window)))[:, None]
            scaled = within * (1 + scales)  # (B, heads, 2, windows, w * w)
            dx, dy = scaled.unbind(2)
            sin, cos = angles[:, :, 0].sin(), angles[:, :, 0].cos()
            rotated = torch.stack((dx * cos - dy * sin, dx * sin + dy * cos), dim=2)
            # As published: offsets in x are in units of the windows in a column, those in y of the windows in
            # a row, without partial ones. A square grid has as many of both.
            units = offsets.new_tensor([max(side // window, 1) for side in grid])[:, None, None]
            return (centers + rotated + offsets / units).permute(0, 1, 3, 4, 2)

    def _sample(self, maps: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample keys and values.

        Args:
            maps: (B, rows, columns, 2, heads, D).
            points: (B * heads, windows, w * w, 2).

        Returns:
            Two tensors (B * windows, heads, w * w, D).
        """
        batch = maps.shape[0]
        images = (
            maps.permute(0, 4, 3, 5, 1, 2).flatten(0, 1).flatten(1, 2)
        )  # (B * heads, 2 * D, rows, columns)
        with torch.autocast(maps.device.type, enabled=False):
            found = F.grid_sample(images.to(points.dtype), points, align_corners=True)
        found = found.to(maps.dtype).view(batch, self.num_heads, 2, self.head_dim, *found.shape[2:])
        keys, values = found.permute(2, 0, 4, 1, 5, 3).flatten(1, 2)
        return keys, values

    def _bias(self, queries: torch.Tensor) -> torch.Tensor:
        """Additive scores (B * windows, heads, w * w, w * w) of queries (B * windows, heads, w, w, D)."""
        by_row, by_column = distance_scores(queries, self.rel_pos_h, self.rel_pos_w)
        scores = (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
        pairs = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return (scores + pairs).to(queries.dtype)


class GlobalAttention(Attention):
    """Attention among all tokens, with relative positions in rows and columns."""

    def __init__(self, width: int, heads: int, grid: Grid) -> None:
        """Build the layer for tokens of `width` channels on a grid of rows and columns."""
        super().__init__(width, heads, qkv_bias=True)
        self.full_attn_rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, self.head_dim))
        self.full_attn_rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, self.head_dim))

    def forward(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:  # type: ignore[override]
        """Attend globally.

        The scores of relative positions are sums of one term for the row of a key and one for its column. So
        they become part of the product of queries and keys, with further channels in which a key says where
        it is. This needs no memory for a score per pair of tokens, and half the time on a CPU.

        Args:
            tokens: (B, N, C), N = rows * columns.
            grid: Rows and columns; the tables are resampled for grids other than that of the constructor.
        """
        batch, length, width = tokens.shape
        rows, columns = grid
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D)
        queries = queries * self.scale
        by_row, by_column = distance_scores(
            queries.unflatten(2, grid),
            resample_distances(self.full_attn_rel_pos_h, rows),
            resample_distances(self.full_attn_rel_pos_w, columns),
        )
        scores = torch.cat((by_row, by_column), dim=-1).flatten(2, 3).to(queries.dtype)
        row = torch.eye(rows, dtype=keys.dtype, device=keys.device).repeat_interleave(columns, 0)
        column = torch.eye(columns, dtype=keys.dtype, device=keys.device).repeat(rows, 1)
        place = torch.cat((row, column), dim=1).expand(batch, self.num_heads, -1, -1)
        out = F.scaled_dot_product_attention(
            torch.cat((queries, scores), dim=-1),
            torch.cat((keys, place), dim=-1),
            F.pad(values, (0, rows + columns)),  # some kernels need equal widths
            scale=1.0,
        )[..., : self.head_dim]
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


def is_rvsa(name: str) -> bool:
    """Whether a backbone's tensor is one that RVSA adds to a plain ViT."""
    match = BLOCK.match(name)
    return match is not None and name[match.end() :].startswith((*WINDOW_PARTS, *GLOBAL_PARTS))


def distance_scores(
    queries: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of queries with the embeddings of their distances to every row and column.

    Args:
        queries: (B, heads, h, w, D).
        table_h: (2h - 1, D), for distances from 1 - h to h - 1, rows of the query minus rows of the key.
        table_w: (2w - 1, D), likewise for columns.

    Returns:
        (B, heads, h, w, h) and (B, heads, h, w, w).
    """
    rows, columns = queries.shape[2:4]
    by_row = torch.einsum("bhyxd,ykd->bhyxk", queries, table_h[_distances(rows, table_h.device)])
    by_column = torch.einsum("bhyxd,xkd->bhyxk", queries, table_w[_distances(columns, table_w.device)])
    return by_row, by_column


def resample_distances(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resample embeddings of distances (L, D) bicubically to (2 * side - 1, D), for a side in tokens."""
    return resample_positions(table.unsqueeze(0), (len(table), 1), (2 * side - 1, 1)).squeeze(0)


def _distances(side: int, device: torch.device) -> torch.Tensor:
    """Index of the distance between every two positions (side, side) in a table of 2 * side - 1."""
    places = torch.arange(side, device=device)
    return places[:, None] - places[None] + side - 1


def _pads(grid: Grid, window: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom padding to whole windows, on both sides; the second gets an odd one."""
    (top, bottom), (left, right) = ((-side % window // 2, (-side % window + 1) // 2) for side in grid)
    return left, right, top, bottom


def _predictor(width: int, outputs: int, window: int) -> nn.Sequential:
    """Head that predicts a number of outputs for each window; at first all are zero."""
    last = nn.Conv2d(width, outputs, kernel_size=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.AvgPool2d(window), nn.LeakyReLU(), last)


def _coordinates(
    side: int, window: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (side / window) of windows, and tokens (window) relative to a centre; a side is -1 to 1."""
    step = 2 / (side - 1)
    middle = (window - 1) / 2
    centers = (torch.arange(middle, side, window, device=device, dtype=dtype)) * step - 1
    return centers, (torch.arange(window, device=device, dtype=dtype) - middle) * step
