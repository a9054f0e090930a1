"""Plain vision transformer with a feature pyramid, on timm's layers and with timm's parameter names.

Pre-norm blocks with exact GELU, fused attention, no norm after the last block, stochastic depth on
the FFN branch only. The input size is free: the positional embedding is resampled to the grid of the image.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention
from torch import nn
from torch.utils.checkpoint import checkpoint

from s5.backbones.moe import MoeMlp
from s5.backbones.pyramid import Pyramid
from s5.backbones.variants import Variant, get_variant
from s5.compat.attention import choose_backends
from s5.compat.cpu_linear import checkpoint_contexts

INIT_STD = 0.02
# Of the blocks of all models in a process, see `ViT.compile_blocks`. PyTorch's own limit is 8.
MAX_GRAPHS = 64


def resample_positions(table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Resample a positional embedding bicubically to another grid (no antialias, corners not aligned).

    Args:
        table: (1, h * w, C) for `grid` = (h, w).
        grid: Rows and columns of the table.
        new_grid: Rows and columns wanted.

    Returns:
        (1, h' * w', C) in the type of `table`; `table` itself if the grids are equal.
    """
    if grid == new_grid:
        return table
    maps = table.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, C, h, w)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(table.dtype)


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
    ) -> None:
        """Build one block of `variant`; with `experts` and `expert_channels` its FFN is a `MoeMlp`."""
        super().__init__()
        width, hidden = variant.width, int(variant.width * variant.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, variant.heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp: nn.Module
        if experts and expert_channels:
            self.mlp = MoeMlp(width, hidden, experts, expert_channels)
        else:
            self.mlp = Mlp(width, hidden)
        self.drop_path = DropPath(drop_path)
        self.backend: str | Callable | None = None

    def forward(self, tokens: torch.Tensor, counts: Sequence[int] | None = None) -> torch.Tensor:
        """Transform tokens (B, N, C); `counts` as in `MoeMlp.forward`, None for a plain FFN.

        What differs between blocks and steps becomes an argument of `transform`: the random factors of the
        stochastic depth, the experts of the tasks in the batch.
        """
        experts: list[nn.Linear] = []
        sizes: list[int] = []
        if counts is not None:
            experts, sizes = cast(MoeMlp, self.mlp).select(counts, tokens.shape[1])
        factors = self._draw_factors(tokens)
        if self.backend is None:
            return self.transform(tokens, factors, experts, sizes)
        if torch.is_inference_mode_enabled():
            # Its tensors are of another kind than those of `no_grad`, and would get a graph of their own.
            with torch.inference_mode(False), torch.no_grad():
                tokens = tokens.clone() if tokens.is_inference() else tokens
                return self._run_compiled(tokens, factors, experts, sizes)
        return self._run_compiled(tokens, factors, experts, sizes)

    def transform(
        self,
        tokens: torch.Tensor,
        factors: torch.Tensor | None,
        experts: Sequence[nn.Linear],
        sizes: Sequence[int],
    ) -> torch.Tensor:
        """Transform tokens; the part that is compiled.

        Args:
            tokens: (B, N, C).
            factors: (B, 1, 1), multiply the FFN branch of each image; None leaves it as it is.
            experts: As in `MoeMlp.transform`; empty for a plain FFN.
            sizes: As in `MoeMlp.transform`.
        """
        tokens = tokens + self.attn(self.norm1(tokens))
        normed = self.norm2(tokens)
        out = cast(MoeMlp, self.mlp).transform(normed, experts, sizes) if experts else self.mlp(normed)
        return tokens + (out if factors is None else out * factors)

    def _run_compiled(
        self,
        tokens: torch.Tensor,
        factors: torch.Tensor | None,
        experts: Sequence[nn.Linear],
        sizes: Sequence[int],
    ) -> torch.Tensor:
        # Tokens of the patch embedding have other strides than those of a block: another graph.
        tokens = tokens.contiguous()
        # `dynamic=True` alone takes sizes that are equal at first, as of 64 images of 64 tokens, for one.
        torch._dynamo.maybe_mark_dynamic(tokens, [0, 1])
        if factors is not None:
            torch._dynamo.maybe_mark_dynamic(factors, 0)
        assert self.backend is not None
        return _compiled_transform(self.backend)(self, tokens, factors, experts, sizes)

    def _draw_factors(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Draw the factors of `transform` as timm's `drop_path` does, in the type of the FFN's output."""
        keep = 1 - self.drop_path.drop_prob
        if not self.training or (keep == 1 and self.backend is None):
            return None
        kind = tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
        factors = tokens.new_ones((len(tokens), 1, 1), dtype=dtype)
        # A block that drops nothing multiplies by 1 when compiled: the same graph as the others.
        return factors if keep == 1 else factors.bernoulli_(keep).div_(keep)


@cache
def _compiled_transform(backend: str | Callable) -> Callable[..., torch.Tensor]:
    """`Block.transform` compiled for blocks of any model; a graph break is an error."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    return torch.compile(Block.transform, fullgraph=True, dynamic=True, backend=backend)


class ViT(nn.Module):
    """Backbone: images to four feature maps of strides 4, 8, 16 and 32.

    Attributes:
        variant: The architecture.
        grid: Rows and columns of the positional embedding.
        experts: Names of the tasks with experts of their own; empty for a dense backbone.
        expert_channels: Output channels of an expert; 0 for a dense backbone.
        activation_checkpointing: Recompute the blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        variant: Variant | str,
        img_size: int | tuple[int, int] = 512,
        drop_path: float = 0.1,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        """Build the backbone with randomly initialised weights.

        Args:
            variant: Name in `VARIANTS`, or a `Variant`.
            img_size: Image size in pixels (side, or height and width) of the positional embedding.
            drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
            norm_eps: Epsilon of the blocks' norms: 1e-5 in published S5 weights, 1e-6 in MAE and timm.
            activation_checkpointing: Recompute the blocks in the backward pass.
            experts: Task names of an MoE backbone, in the order of the batch.
            expert_channels: Output channels of an expert; 0 gives a dense backbone.

        Raises:
            ValueError: Unknown backbone, or an image size not divisible by the patch.
        """
        super().__init__()
        choose_backends()
        self.variant = variant = get_variant(variant)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        check_size(height, width, variant.patch)
        self.grid = (height // variant.patch, width // variant.patch)
        self.expert_channels = expert_channels if experts else 0
        self.experts = tuple(experts) if expert_channels else ()
        self.activation_checkpointing = activation_checkpointing

        self.patch_embed = PatchEmbed(None, variant.patch, 3, variant.width)
        # Has no effect on the output; kept so that published checkpoints convert both ways.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.width), requires_grad=False)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], variant.width))
        rates = torch.linspace(0, drop_path, variant.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(variant, rate, norm_eps, self.experts, self.expert_channels) for rate in rates
        )
        self.pyramid = Pyramid(variant.width)
        self._init_weights()

    def forward(self, images: torch.Tensor, counts: Sequence[int] | None = None) -> tuple[torch.Tensor, ...]:
        """Compute the four feature maps.

        Args:
            images: (B, 3, H, W), normalised; H and W divisible by the patch and at least two patches.
                With experts, ordered by task.
            counts: Images of each task, in the order of `experts`; may be left out for a dense
                backbone and for a single expert.

        Returns:
            Maps (B, C, H / s, W / s) for s = 4, 8, 16, 32 (the last rounded down).

        Raises:
            ValueError: H or W does not fit, or `counts` does not match the experts or the batch.
        """
        height, width = images.shape[-2:]
        check_size(height, width, self.variant.patch)
        counts = self._resolve_counts(counts, len(images))
        rows, columns = height // self.variant.patch, width // self.variant.patch
        tokens = self.patch_embed(images)  # (B, N, C), N = rows * columns
        tokens = tokens + resample_positions(self.pos_embed, self.grid, (rows, columns))

        outputs = {}
        for index, block in enumerate(self.blocks):
            tokens = self._run_block(block, tokens, counts)
            if index in self.variant.out_blocks:
                outputs[index] = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
        return self.pyramid([outputs[index] for index in self.variant.out_blocks])

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Run the blocks through `torch.compile`: with one graph in training and one in evaluation.

        All blocks share them, for any number and size of images and whichever tasks these belong to. A batch
        of a single image, another number of tasks in a batch, and frozen weights as of an EMA teacher are
        compiled separately, once each. A graph break is an error.

        Args:
            backend: As for `torch.compile`; the default needs a C compiler on GPUs, a C++ compiler on CPUs.
        """
        for block in self.blocks:
            cast(Block, block).backend = backend

    def _run_block(
        self, block: nn.Module, tokens: torch.Tensor, counts: Sequence[int] | None
    ) -> torch.Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, counts, use_reentrant=False, context_fn=checkpoint_contexts())
        return block(tokens, counts)

    def _resolve_counts(self, counts: Sequence[int] | None, batch: int) -> Sequence[int] | None:
        if not self.experts:
            return None
        if counts is None and len(self.experts) == 1:
            return (batch,)
        if counts is None or len(counts) != len(self.experts) or sum(counts) != batch:
            raise ValueError(
                f"counts must give the images of each of {', '.join(self.experts)} and add up to the "
                f"batch of {batch}, got {counts}"
            )
        return counts

    def _init_weights(self) -> None:
        """Initialise as ViT and MAE do; the pyramid keeps PyTorch's initialisation."""
        self.blocks.apply(_init_block_layer)
        # As a linear layer on flattened patches, not as a convolution.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.get_parameter("proj.bias"))
        # A smooth table survives resampling to other image sizes, a random one does not.
        table = build_sincos2d_pos_embed(
            list(self.grid), self.variant.width, interleave_sin_cos=False, device=self.pos_embed.device
        )
        with torch.no_grad():
            self.pos_embed.copy_(table.unsqueeze(0))


def check_size(height: int, width: int, patch: int) -> None:
    """Check that an image is cut into whole patches, at least two per side.

    Raises:
        ValueError: It is not.
    """
    if height % patch or width % patch or min(height, width) < 2 * patch:
        raise ValueError(
            f"image of {height}x{width} pixels: both sides must be multiples of {patch} and at least "
            f"{2 * patch}; pad the image (s5.segmentation.segmentor.Segmentor does) or resize it"
        )


def _init_block_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        module.bias.data.zero_()
