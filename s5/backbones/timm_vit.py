"""Plain ViTs of timm, such as DINOv2, DINOv3 and CLIP, with a pyramid that resamples four maps.

The network is timm's, with patches of 16 pixels: class token, registers, layer scale, rotary positions
and SwiGLU as the model has them. The outputs of four evenly spaced blocks go through the model's norm after
the last block, if it has one, as DINOv2 and DINOv3 compute dense features (`get_intermediate_layers` with
`norm=True`). Class token and registers are part of the sequence, not of the maps. Norms have the epsilon of
the model in timm.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from s5.backbones.contract import Architecture, Backbone, Counts, StateDict
from s5.backbones.embeddings import fit_patches
from s5.backbones.moe import add_experts, fit_experts, recompute, routing
from s5.backbones.normalization import Normalization
from s5.backbones.pyramid import Pyramid
from s5.backbones.timm_models import BODY, PATCH, normalization_of
from s5.errors import CheckpointError

BLOCK = re.compile(rf"^{re.escape(BODY)}blocks\.(\d+)\.(.+)$")
QKV_BIASES = ("attn.q_bias", "attn.v_bias")  # DINOv3's are zero, so timm's models leave them out
# Tensors that only some models have. With the shapes in the blocks, they tell models apart.
OPTIONAL = ("cls_token", "reg_token", "pos_embed", "norm_pre.weight", "rope.freqs")


@dataclass(frozen=True)
class TimmViTModel(Architecture):
    """A plain ViT of timm.

    Attributes:
        name: Name on the command line and in configurations.
        timm: Name in timm, with or without the tag of its weights.
        width: Channels C of a token.
        named_weights: See the base class.
        options: Further arguments of `timm.create_model`.
    """

    name: str
    timm: str
    width: int
    named_weights: Mapping[str, str] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    divisor = PATCH
    min_size = 2 * PATCH  # the coarsest level of the pyramid halves the grid
    timm_names = True

    @property
    def max_expert_channels(self) -> int:  # type: ignore[override]
        """The full width, with which nothing is shared in the second linear layer."""
        return self.width

    @property
    def form(self) -> str:  # type: ignore[override]
        """The name in timm."""
        return f"timm's {self.timm}"

    @property
    def normalization(self) -> Normalization:  # type: ignore[override]
        """That of timm's weights."""
        return normalization_of(self.timm)

    def with_weights(self, name: str) -> "TimmViTModel":
        """See the base class."""
        tag = self.named_weights.get(name)
        return self if tag is None else replace(self, timm=f"{self.timm.partition('.')[0]}.{tag}")

    def build(self, img_size: int | tuple[int, int], **options: Any) -> "TimmViT":
        """See the base class."""
        return TimmViT(self, img_size, **options)

    def create(self, img_size: tuple[int, int], drop_path: float = 0.0) -> Any:  # noqa: ANN401 - timm has no types
        """Create timm's network for images of this height and width, on the default device, without head.

        Raises:
            ValueError: It is not a plain ViT whose patches can have 16 pixels.
        """
        network: Any = timm.create_model(
            self.timm,
            num_classes=0,
            img_size=img_size,
            patch_size=PATCH,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            **self.options,
        )
        plain = isinstance(network, VisionTransformer | Eva) and type(network.patch_embed) is PatchEmbed
        if not plain or network.patch_embed.patch_size != (PATCH, PATCH):
            raise ValueError(
                f"{self.name}: timm's {self.timm} is not a plain ViT with patches of {PATCH} pixels"
            )
        network.prune_intermediate_layers(len(network.blocks), prune_norm=False, prune_head=True)
        return network

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether depth, shapes in the blocks, registers and kinds of positions are equal."""
        stem = tensors.get(TimmViT.stem)
        if stem is None or len(stem) != self.width:
            return False
        return _characteristics(tensors) == _characteristics(_skeleton(self))

    def img_size_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Derive the size from the positional embedding, if there is one."""
        table = tensors.get(f"{BODY}pos_embed")
        # With or without entries for class token and registers, of which there are few.
        return None if table is None else math.isqrt(table.shape[1]) * PATCH

    def pretrained(self) -> StateDict:
        """See the base class."""
        return timm.create_model(self.timm, pretrained=True, num_classes=0).state_dict()


SATELLITE = {"dinov3_sat": "sat493m"}
TIMM_VITS: dict[str, TimmViTModel] = {
    model.name: model
    for model in (
        TimmViTModel("dinov2_s", "vit_small_patch14_dinov2", 384),
        TimmViTModel("dinov2_b", "vit_base_patch14_dinov2", 768),
        TimmViTModel("dinov2_l", "vit_large_patch14_dinov2", 1024),
        TimmViTModel("dinov2_s_reg", "vit_small_patch14_reg4_dinov2", 384),
        TimmViTModel("dinov2_b_reg", "vit_base_patch14_reg4_dinov2", 768),
        TimmViTModel("dinov2_l_reg", "vit_large_patch14_reg4_dinov2", 1024),
        TimmViTModel("dinov3_s", "vit_small_patch16_dinov3", 384),
        TimmViTModel("dinov3_b", "vit_base_patch16_dinov3", 768),
        TimmViTModel("dinov3_l", "vit_large_patch16_dinov3", 1024, SATELLITE),
        TimmViTModel("dinov3_7b", "vit_7b_patch16_dinov3", 4096, SATELLITE),
    )
}
"""Registered models by name."""


def plain_vit(name: str, timm_name: str) -> TimmViTModel:
    """Describe any plain ViT of timm.

    Args:
        name: Name on the command line.
        timm_name: Name in timm, with or without a tag.

    Raises:
        ValueError: The model is not a plain ViT whose patches can have 16 pixels.
    """
    row = TimmViTModel(name, timm_name, 0)
    return replace(row, width=len(_skeleton(row)[TimmViT.stem]))


@cache
def _skeleton(model: TimmViTModel) -> StateDict:
    """The tensors of a model by name, on the meta device."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = model.create((PATCH * 2, PATCH * 2))
    return {BODY + name: tensor for name, tensor in network.state_dict().items()}


def _characteristics(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int, set[str], dict[str, torch.Size]]:
    """Depth, number of registers, optional tensors, and shapes in the blocks that no option changes."""
    depth, shapes = 0, {}
    for name, tensor in tensors.items():
        if match := BLOCK.match(name):
            depth = max(depth, int(match[1]) + 1)
            if not match[2].startswith(("mlp.fc2.", "mlp.experts.", *QKV_BIASES)):
                shapes[match[2]] = tensor.shape
    registers = tensors.get(f"{BODY}reg_token")
    present = {name for name in OPTIONAL if BODY + name in tensors}
    return depth, 0 if registers is None else registers.shape[1], present, shapes


class TimmViT(Backbone):
    """Plain ViT of timm, dense or with experts, with a pyramid that resamples its maps to four strides."""

    stem = f"{BODY}patch_embed.proj.weight"

    def __init__(
        self,
        model: TimmViTModel,
        img_size: int | tuple[int, int] = 512,
        drop_path: float = 0.1,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        """Build the backbone with randomly initialised weights.

        Args:
            model: The timm model.
            img_size: Image size in pixels (side, or height and width) of the positional embedding, if any.
            drop_path: Stochastic depth rate of the last block, on both branches; it rises linearly from 0.
            norm_eps: Without effect, because the weights of every model need the epsilon of its own.
            activation_checkpointing: Recompute the blocks in the backward pass.
            experts: Task names of an MoE backbone.
            expert_channels: Output channels of an expert; 0 gives a dense backbone.

        Raises:
            ValueError: The image size is not divisible by the patch, or the FFNs cannot have experts.
        """
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        model.check_size(*sides)
        body = model.create(sides, drop_path)
        depth, width = len(body.blocks), body.embed_dim
        super().__init__(model, [width] * 4, depth + 1, activation_checkpointing, experts, expert_channels)
        self.out_blocks = tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))
        if self.experts:
            add_experts(body, self.experts, expert_channels)
        self.body = body
        self.pyramid = Pyramid([width] * 4, [PATCH] * 4)
        scales = (".ls1.gamma", ".ls2.gamma", ".gamma_1", ".gamma_2")
        exempt = body.no_weight_decay()
        self.undecayed = tuple(
            BODY + name for name, _ in body.named_parameters() if name in exempt or name.endswith(scales)
        )

    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        height, width = images.shape[-2:]
        self.architecture.check_size(height, width)
        counts, body = self.resolve_counts(counts, images.shape[0]), self.body
        embedded = body._pos_embed(body.patch_embed(images))  # with rotary positions, if the model has any
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = body.norm_pre(tokens)  # (B, prefix + h * w, C)
        by_block = rope is not None and body.rope_mixed  # rotary positions are learned for every block
        maps = []
        with routing(counts):
            for index, block in enumerate(body.blocks):
                tokens = self._run_block(block, tokens, rope[index] if by_block else rope)
                if index in self.out_blocks:
                    patches = body.norm(tokens[:, body.num_prefix_tokens :])  # (B, h * w, C)
                    maps.append(patches.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH)))
        return self.pyramid(maps)

    def layer_of(self, parameter: str) -> int:
        """The embeddings are layer 0, the first block is layer 1; norm and pyramid come after the blocks."""
        if match := BLOCK.match(parameter):
            return int(match[1]) + 1
        return self.num_layers if parameter.startswith((f"{BODY}norm.", self.own)) else 0

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """See the base class; resamples patches and positions, and splits dense FFNs among the experts."""
        tensors, notes = super().fit_weights(tensors, bands)
        tensors, more = fit_patches(tensors, self.stem, PATCH)
        notes += more
        tensors, more = self._fit_biases(tensors)
        notes += more
        tensors, split = fit_experts(tensors, self.experts, self.expert_channels)
        tensors, more = self._fit_positions(tensors)
        return tensors, [*notes, *split, *more]

    def _run_block(self, block: nn.Module, tokens: torch.Tensor, rope: torch.Tensor | None) -> torch.Tensor:
        positions = {} if rope is None else {"rope": rope}
        if self.activation_checkpointing and torch.is_grad_enabled():
            return recompute(block, tokens, **positions)
        return block(tokens, **positions)

    def _fit_biases(self, tensors: StateDict) -> tuple[StateDict, list[str]]:
        """Drop biases of queries and values that are zero and not in the model, or add them."""
        names = [f"{BODY}blocks.{i}.{bias}" for i in range(len(self.body.blocks)) for bias in QKV_BIASES]
        stored = [name for name in names if name in tensors]
        wanted = [name for name in names if name in dict(self.named_parameters())]
        if bool(stored) == bool(wanted):
            return tensors, []
        if wanted:
            zeros = {name: torch.zeros_like(self.get_parameter(name), device="cpu") for name in wanted}
            return tensors | zeros, ["no biases of queries and values in the checkpoint: set to zero"]
        if any(tensors[name].any() for name in stored):
            raise CheckpointError(
                f"queries and values have biases, which {self.name} does not have; choose the backbone "
                f"timm:{cast(TimmViTModel, self.architecture).timm.partition('.')[0]}_qkvb"
            )
        kept = {name: tensor for name, tensor in tensors.items() if name not in stored}
        return kept, ["biases of queries and values left out: all are zero"]

    def _fit_positions(self, tensors: StateDict) -> tuple[StateDict, list[str]]:
        name = f"{BODY}pos_embed"
        table, own = tensors.get(name), self.body.pos_embed
        if table is None or own is None or table.shape == own.shape:
            return tensors, []
        prefix = 0 if self.body.no_embed_class else self.body.num_prefix_tokens
        length = table.shape[1] - prefix if table.ndim == own.ndim else -1
        side, grid = math.isqrt(max(length, 0)), self.body.patch_embed.grid_size
        if side**2 != length:
            raise CheckpointError(
                f"positional embedding of shape {tuple(table.shape)}: without {prefix} entries for class "
                f"token and registers, it is not a square grid, cannot be resampled"
            )
        resampled = resample_abs_pos_embed(table, grid, (side, side), num_prefix_tokens=prefix)
        return tensors | {name: resampled}, [
            f"positional embedding of {side}x{side} patches resampled to {grid[0]}x{grid[1]}"
        ]
