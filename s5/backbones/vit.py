"""Plain vision transformer with a feature pyramid, on timm's layers and with timm's parameter names.

Blocks are pre-norm with exact GELU, fused attention, and stochastic depth on the FFN branch only; there is no
norm after the last block. Images may have any size: the positional embedding is resampled to their grid.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from timm.layers import DropPath, Mlp, PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention
from torch import nn
from torch.utils.checkpoint import checkpoint

from s5.backbones.contract import Architecture, Backbone, Counts, StateDict
from s5.backbones.embeddings import fit_patches, fit_positions, resample_positions
from s5.backbones.moe import MoeMlp, fit_experts
from s5.backbones.pyramid import Pyramid
from s5.compat.cpu_linear import checkpoint_contexts
from s5.errors import CheckpointError

INIT_STD = 0.02
# Maximum number of graphs for the blocks of all models in a process, see `ViT.compile_blocks`.
MAX_GRAPHS = 64
PATCH_EMBEDDING = "patch_embed.proj.weight"
ROTATED = ", rotated windows"  # in the form of a ViT with RVSA
BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Variant(Architecture):
    """Architecture of a plain ViT.

    Attributes:
        name: Name on the command line and in configurations.
        width: Channels C of a token.
        depth: Number of transformer blocks.
        heads: Attention heads; must divide `width`.
        out_blocks: Four block indices (from 0, ascending) whose outputs feed the pyramid.
        mlp_ratio: Hidden width of the FFN divided by `width`.
        patch: Side of a patch in pixels.
        timm: Name of the timm model for `--init timm`; None if timm has no weights.
    """

    name: str
    width: int
    depth: int
    heads: int
    out_blocks: tuple[int, int, int, int]
    mlp_ratio: float = 4.0
    patch: int = 16
    timm: str | None = None
    any_size_graph = True

    @property
    def divisor(self) -> int:  # type: ignore[override]
        """Side of a patch, because images are cut into full patches."""
        return self.patch

    @property
    def min_size(self) -> int:  # type: ignore[override]
        """Two patches, because the coarsest level of the pyramid halves the grid."""
        return 2 * self.patch

    @property
    def max_expert_channels(self) -> int:  # type: ignore[override]
        """The full width, with which nothing is shared in the second linear layer."""
        return self.width

    @property
    def form(self) -> str:  # type: ignore[override]
        """Same description as `form_of` of its weights."""
        return _form(self.width, self.depth, self.patch)

    def build(self, img_size: int | tuple[int, int], **options: Any) -> "ViT":
        """See the base class."""
        return ViT(self, img_size, **options)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether width and depth are equal; `ViT.fit_weights` resamples patches of another size."""
        weight = tensors.get(PATCH_EMBEDDING)
        patch = self.patch if weight is None else weight.shape[-1]
        return form_of(tensors) == _form(self.width, self.depth, patch)

    def img_size_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Derive the size from the positional embedding."""
        return math.isqrt(tensors["pos_embed"].shape[1]) * self.patch if "pos_embed" in tensors else None

    def pretrained(self) -> StateDict:
        """See the base class."""
        if self.timm is None:
            known = ", ".join(row.name for row in VARIANTS.values() if row.timm)
            raise CheckpointError(f"timm has no weights for {self.name}; known: {known}")
        import timm

        return timm.create_model(self.timm, pretrained=True, num_classes=0).state_dict()


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("vit_t", 192, 12, 3, (3, 5, 7, 11), timm="vit_tiny_patch16_224"),
        Variant("vit_s", 384, 12, 6, (3, 5, 7, 11), timm="vit_small_patch16_224"),
        Variant("vit_b", 768, 12, 12, (3, 5, 7, 11), timm="vit_base_patch16_224"),
        Variant("vit_l", 1024, 24, 16, (7, 11, 15, 23), timm="vit_large_patch16_224"),
        Variant("vit_h", 1280, 32, 16, (15, 23, 27, 31)),
        Variant("vit_g", 1408, 40, 16, (9, 19, 29, 39)),
    )
}
"""Registered sizes by name."""


def form_of(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Describe width, depth, patch and windows of a ViT's weights; None if they are not from a ViT."""
    weight = tensors.get(PATCH_EMBEDDING)
    blocks = [int(match[1]) for name in tensors if (match := BLOCK.match(name))]
    if weight is None or not blocks:
        return None
    rotated = ROTATED if any(".attn.sampling_" in name for name in tensors) else ""
    return _form(weight.shape[0], max(blocks) + 1, weight.shape[-1]) + rotated


def _form(width: int, depth: int, patch: int) -> str:
    return f"width {width}, depth {depth}, patch {patch}"


class Block(nn.Module):
    """Pre-norm transformer block, with stochastic depth on the FFN branch and an optional MoE FFN.

    Attributes:
        backend: Backend of `torch.compile` for `transform`, see `ViT.compile_blocks`; None runs it eagerly.
    """

    def __init__(
        self,
        variant: Variant,
        drop_path: float,
        norm_eps: float,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
        attention: nn.Module | None = None,
    ) -> None:
        """Build one block of `variant`; experts make its FFN a `MoeMlp`, see `ViT.build_attention`."""
        super().__init__()
        width, hidden = variant.width, int(variant.width * variant.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.spatial = attention is not None
        self.attn = Attention(width, variant.heads, qkv_bias=True) if attention is None else attention
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp: nn.Module
        if experts and expert_channels:
            self.mlp = MoeMlp(width, hidden, experts, expert_channels)
        else:
            self.mlp = Mlp(width, hidden)
        self.drop_path = DropPath(drop_path)
        self.backend: str | Callable | None = None

    def forward(
        self, tokens: torch.Tensor, counts: Counts | None = None, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Transform tokens (B, N, C); `counts` as for `MoeMlp`, `grid` as for `ViT.build_attention`.

        Everything that differs between blocks and steps is an argument of `transform`: the random factors of
        stochastic depth, and the experts of the tasks in the batch.
        """
        routed = () if counts is None else cast(MoeMlp, self.mlp).select(counts, tokens.shape[1])
        factors = self._draw_factors(tokens)
        if self.backend is None:
            return self.transform(tokens, factors, grid, *routed)
        if torch.is_inference_mode_enabled():
            # Inference tensors would need a separate graph from those under `no_grad`.
            with torch.inference_mode(False), torch.no_grad():
                tokens = tokens.clone() if tokens.is_inference() else tokens
                return self._run_compiled(tokens, factors, *routed)
        return self._run_compiled(tokens, factors, *routed)

    def transform(
        self,
        tokens: torch.Tensor,
        factors: torch.Tensor | None,
        grid: tuple[int, int] | None,
        experts: Sequence[nn.Linear] = (),
        sizes: Sequence[int] = (),
    ) -> torch.Tensor:
        """Transform tokens; the part that is compiled.

        Args:
            tokens: (B, N, C).
            factors: (B, 1, 1), scale the FFN branch of each image; None does not scale it.
            grid: Rows and columns of the tokens; without effect on plain attention.
            experts: As in `MoeMlp.transform`; empty for a plain FFN.
            sizes: As in `MoeMlp.transform`.
        """
        normed = self.norm1(tokens)
        tokens = tokens + (self.attn(normed, grid) if self.spatial else self.attn(normed))
        normed = self.norm2(tokens)
        out = cast(MoeMlp, self.mlp).transform(normed, experts, sizes) if experts else self.mlp(normed)
        return tokens + (out if factors is None else out * factors)

    def _run_compiled(
        self, tokens: torch.Tensor, factors: torch.Tensor | None, *routed: Sequence
    ) -> torch.Tensor:
        assert self.backend is not None
        # Tokens of the patch embedding and of blocks have different strides, which would need two graphs.
        tokens = tokens.contiguous()
        # With `dynamic=True` alone, sizes that are equal at first (64 images of 64 tokens) count as one.
        torch._dynamo.maybe_mark_dynamic(tokens, [0, 1])
        if factors is not None:
            torch._dynamo.maybe_mark_dynamic(factors, 0)
        return _compiled_transform(self.backend)(self, tokens, factors, None, *routed)

    def _draw_factors(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Draw the factors of `transform` as timm's `drop_path` does, in the dtype of the FFN's output."""
        keep = 1 - self.drop_path.drop_prob
        if not self.training or (keep == 1 and self.backend is None):
            return None
        kind = tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
        factors = tokens.new_ones((len(tokens), 1, 1), dtype=dtype)
        # A compiled block without dropping multiplies by 1, to share the graph of the others.
        return factors if keep == 1 else factors.bernoulli_(keep).div_(keep)


@cache
def _compiled_transform(backend: str | Callable) -> Callable[..., torch.Tensor]:
    """Compile `Block.transform` for blocks of all models; graph breaks are errors."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    return torch.compile(Block.transform, fullgraph=True, dynamic=True, backend=backend)


class ViT(Backbone):
    """Plain ViT, dense or with experts, with a pyramid that resamples its maps to four strides.

    Attributes:
        grid: Rows and columns of the positional embedding.
    """

    stem = PATCH_EMBEDDING
    inert: tuple[str, ...] = ("cls_token",)
    undecayed: tuple[str, ...] = ("pos_embed",)

    def __init__(
        self,
        variant: Variant,
        img_size: int | tuple[int, int] = 512,
        drop_path: float = 0.1,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        """Build the backbone with randomly initialised weights.

        Args:
            variant: Architecture.
            img_size: Image size in pixels (side, or height and width) of the positional embedding.
            drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
            norm_eps: Epsilon of the blocks' norms: 1e-5 in published S5 weights, 1e-6 in MAE and timm.
            activation_checkpointing: Recompute the blocks in the backward pass.
            experts: Task names of an MoE backbone.
            expert_channels: Output channels of an expert; 0 gives a dense backbone.

        Raises:
            ValueError: The image size is not divisible by the patch.
        """
        width = variant.width
        super().__init__(
            variant, [width] * 4, variant.depth + 1, activation_checkpointing, experts, expert_channels
        )
        self.variant = variant
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        variant.check_size(*sides)
        self.grid = (sides[0] // variant.patch, sides[1] // variant.patch)

        self.patch_embed = PatchEmbed(None, variant.patch, 3, width)
        # Unused, but kept so that checkpoints can be converted from and to the published layout.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=False)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width))
        rates = torch.linspace(0, drop_path, variant.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(variant, rate, norm_eps, self.experts, self.expert_channels, self.build_attention(index))
            for index, rate in enumerate(rates)
        )
        self.pyramid = Pyramid([width] * 4, [variant.patch] * 4)
        self._init_weights()

    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        height, width = images.shape[-2:]
        self.variant.check_size(height, width)
        counts = self.resolve_counts(counts, images.shape[0])
        rows, columns = height // self.variant.patch, width // self.variant.patch
        tokens = self.patch_embed(images)  # (B, N, C), N = rows * columns
        tokens = tokens + resample_positions(self.pos_embed, self.grid, (rows, columns))

        outputs = {}
        for index, block in enumerate(self.blocks):
            tokens = self._run_block(block, tokens, counts, (rows, columns))
            if index in self.variant.out_blocks:
                outputs[index] = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
        return self.pyramid([outputs[index] for index in self.variant.out_blocks])

    def build_attention(self, index: int) -> nn.Module | None:
        """Build a block's attention, which takes tokens (B, N, C) and their grid; None for plain one."""
        return None

    def layer_of(self, parameter: str) -> int:
        """The embeddings are layer 0, the first block is layer 1, the pyramid comes after the last block."""
        if match := BLOCK.match(parameter):
            return int(match[1]) + 1
        return self.num_layers if parameter.startswith("pyramid.") else 0

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Compile the blocks with `torch.compile`: one graph for training and one for evaluation.

        All blocks share them, for any number, size and tasks of images. Batches of a single image, other
        numbers of tasks in a batch, and frozen weights (of an EMA teacher) are compiled separately, once
        each. Graph breaks are errors.
        """
        for block in self.blocks:
            cast(Block, block).backend = backend

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """See the base class; splits dense FFNs among the experts and resamples the embeddings."""
        tensors, notes = super().fit_weights(tensors, bands)
        tensors, resampled = fit_patches(tensors, PATCH_EMBEDDING, self.variant.patch)
        tensors, split = fit_experts(tensors, self.experts, self.expert_channels)
        notes += [*resampled, *split]
        fitted = fit_positions(tensors, self.grid)
        if fitted is not tensors:
            length, (rows, columns) = tensors["pos_embed"].shape[1], self.grid
            notes.append(f"positional embedding of {length} entries resampled to {rows}x{columns}")
        return fitted, notes

    def _run_block(self, block: nn.Module, *inputs: object) -> torch.Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=checkpoint_contexts())
        return block(*inputs)

    def _init_weights(self) -> None:
        """Initialise as ViT and MAE do; the pyramid keeps PyTorch's initialisation."""
        self.blocks.apply(_init_block_layer)
        # As a linear layer on flattened patches, not as a convolution.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.get_parameter("proj.bias"))
        # A smooth positional embedding can be resampled to other image sizes, a random one cannot.
        table = build_sincos2d_pos_embed(
            list(self.grid), self.variant.width, interleave_sin_cos=False, device=self.pos_embed.device
        )
        with torch.no_grad():
            self.pos_embed.copy_(table.unsqueeze(0))


def _init_block_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        module.bias.data.zero_()
