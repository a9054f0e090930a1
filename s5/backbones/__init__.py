"""Registry of backbones, which map images to feature maps of strides 4, 8, 16 and 32.

A name such as `vit_b` stands for a dense backbone, `vit_b_moe` for the same backbone with experts.
"""

from collections.abc import Mapping, Sequence

import torch

from s5.backbones.contract import STRIDES, Architecture, Backbone, Counts, Finetune, StateDict
from s5.backbones.lora import (
    LORA_KEY,
    LORA_SCALE,
    Lora,
    adapted_weight,
    adapter_names,
    add_adapters,
    lora_of,
    merge_adapters,
)
from s5.backbones.moe import EXPERT_KEY, expert_names, join_experts
from s5.backbones.timm_models import TIMM_MODELS, has_own_names
from s5.backbones.vit import PATCH_EMBEDDING, VARIANTS, form_of

__all__ = [
    "EXPERT_KEY",
    "LORA_KEY",
    "LORA_SCALE",
    "PATCH_EMBEDDING",
    "STRIDES",
    "Architecture",
    "Backbone",
    "Counts",
    "Finetune",
    "Lora",
    "StateDict",
    "adapted_weight",
    "adapter_names",
    "add_adapters",
    "create_backbone",
    "dense_name",
    "describe",
    "expert_names",
    "get_architecture",
    "has_experts",
    "has_own_names",
    "identify",
    "join_experts",
    "list_backbones",
    "lora_of",
    "merge_adapters",
    "with_experts",
]

ARCHITECTURES: dict[str, Architecture] = {**VARIANTS, **TIMM_MODELS}
MOE = "_moe"


def list_backbones(experts: bool = False) -> list[str]:
    """Names of all backbones; with `experts` also the names of those with experts."""
    moe = [with_experts(name) for name, row in ARCHITECTURES.items() if row.max_expert_channels]
    return [*ARCHITECTURES, *(moe if experts else [])]


def has_experts(name: str) -> bool:
    """Whether a name stands for a backbone with experts."""
    return name.endswith(MOE)


def dense_name(name: str) -> str:
    """Name of the dense backbone for a name with or without experts."""
    return name.removesuffix(MOE)


def with_experts(name: str) -> str:
    """Name of the backbone with experts for the name of a dense one."""
    return f"{name}{MOE}"


def get_architecture(name: str | Architecture) -> Architecture:
    """Look up a backbone by name, with or without experts; an `Architecture` is returned unchanged.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    if isinstance(name, Architecture):
        return name
    if name not in (known := list_backbones(experts=True)):
        raise ValueError(f"unknown backbone {name!r}; known backbones: {', '.join(known)}")
    return ARCHITECTURES[dense_name(name)]


def create_backbone(
    name: str | Architecture,
    img_size: int | tuple[int, int] = 512,
    *,
    drop_path: float = 0.1,
    norm_eps: float = 1e-5,
    activation_checkpointing: bool = False,
    experts: Sequence[str] = (),
    expert_channels: int = 0,
    lora: Lora | None = None,
) -> Backbone:
    """Build a backbone with randomly initialised weights.

    Args:
        name: A name of `list_backbones`, or an `Architecture`.
        img_size: Image size in pixels (side, or height and width) to build for; other sizes work as well.
        drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
        norm_eps: Epsilon of the norms in the blocks: 1e-5 for published S5 weights, 1e-6 for MAE.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        experts: Names of the tasks that get an expert or adapters.
        expert_channels: Output channels of an expert; 0 gives a dense backbone regardless of its name.
        lora: Settings of LoRA adapters, with which the backbone itself is frozen; None adds none.

    Raises:
        ValueError: The name is unknown, the image size does not fit, or such experts or adapters are not
            supported.
    """
    backbone = get_architecture(name).build(
        img_size,
        drop_path=drop_path,
        norm_eps=norm_eps,
        activation_checkpointing=activation_checkpointing,
        experts=experts,
        expert_channels=expert_channels,
    )
    if lora is not None:
        add_adapters(backbone, experts, lora)
    return backbone


def identify(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the dense backbone that fits weights under this package's names; None if there is none."""
    return next((name for name, row in ARCHITECTURES.items() if row.fits(tensors)), None)


def describe(tensors: Mapping[str, torch.Tensor]) -> str:
    """Describe the architecture of weights under this package's names, for messages."""
    name = identify(tensors)
    return ARCHITECTURES[name].form if name else form_of(tensors) or "an unknown network"
