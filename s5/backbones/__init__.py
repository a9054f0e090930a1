"""Registry of backbones, which map images to feature maps of strides 4, 8, 16 and 32.

A name such as `vit_b` stands for a dense backbone, `vit_b_moe` for the same backbone with experts.
`timm:NAME` is any network of timm with feature maps, with or without the tag of its weights.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import timm
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
from s5.backbones.moe import EXPERT_KEY, expert_names, expert_width, join_experts
from s5.backbones.normalization import IMAGENET, NORMALIZATIONS, Normalization, parse_normalization
from s5.backbones.rvsa import RVSA_VARIANTS
from s5.backbones.timm_derived import TIMM, derive
from s5.backbones.timm_models import BODY, TIMM_MODELS, has_own_names, normalization_of
from s5.backbones.timm_vit import TIMM_VITS, plain_vit
from s5.backbones.vit import PATCH_EMBEDDING, VARIANTS, form_of
from s5.errors import did_you_mean

__all__ = [
    "BODY",
    "EXPERT_KEY",
    "IMAGENET",
    "NORMALIZATIONS",
    "LORA_KEY",
    "LORA_SCALE",
    "PATCH_EMBEDDING",
    "STRIDES",
    "TIMM",
    "Architecture",
    "Backbone",
    "Counts",
    "Finetune",
    "Lora",
    "Normalization",
    "StateDict",
    "adapted_weight",
    "adapter_names",
    "add_adapters",
    "create_backbone",
    "dense_name",
    "describe",
    "expert_names",
    "expert_width",
    "file_name",
    "get_architecture",
    "has_experts",
    "has_own_names",
    "identify",
    "join_experts",
    "list_backbones",
    "lora_of",
    "merge_adapters",
    "normalization_of",
    "parse_normalization",
    "with_experts",
]

ARCHITECTURES: dict[str, Architecture] = {**VARIANTS, **RVSA_VARIANTS, **TIMM_MODELS, **TIMM_VITS}
MOE = "_moe"
# Modules of timm with plain ViTs, whose patches always become 16 pixels.
PLAIN_VITS = ("vision_transformer", "eva", "deit")


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


def file_name(name: str) -> str:
    """Return the name of a backbone as part of a file's name."""
    return name.replace(":", "_")


def get_architecture(name: str | Architecture, experts: bool = True) -> Architecture:
    """Look up a backbone by name, with or without experts; an `Architecture` is returned unchanged.

    Args:
        name: The name.
        experts: Whether the message about an unknown name lists those with experts.

    Raises:
        ValueError: The name is unknown, and the message lists the known and the nearest ones; or the model of
            timm cannot be a backbone, or have experts.
    """
    if isinstance(name, Architecture):
        return name
    if name.startswith(TIMM):
        row = _of_timm(dense_name(name))
        if has_experts(name) and not row.max_expert_channels:
            raise ValueError(f"{row.name} cannot have experts; choose it without {MOE}, or a plain ViT")
        return row
    if dense_name(name) not in ARCHITECTURES or name not in list_backbones(experts=True):
        known = list_backbones(experts)
        raise ValueError(
            f"unknown backbone {name!r}; known backbones: {', '.join(known)}, and {TIMM}NAME for networks of "
            f"timm{did_you_mean(name, known)}"
        )
    return ARCHITECTURES[dense_name(name)]


@cache
def _of_timm(name: str) -> Architecture:
    """Describe the network of timm that `timm:NAME` stands for."""
    timm_name = name.removeprefix(TIMM)
    model, _, tag = timm_name.partition(".")
    if not timm.is_model(model):
        hint = did_you_mean(TIMM + model, [TIMM + known for known in timm.list_models()])
        raise ValueError(f"unknown backbone {name!r}: timm {timm.__version__} has no model {model!r}{hint}")
    if tag and timm_name not in (tagged := timm.list_models(f"{model}.*", pretrained=True)):
        raise ValueError(
            f"unknown backbone {name!r}: timm has no weights {tag!r} of {model}; it has "
            f"{', '.join(known.partition('.')[2] for known in tagged) or 'none'}"
        )
    module = timm.model_entrypoint(model).__module__.rpartition(".")[2]
    return plain_vit(name, timm_name) if module in PLAIN_VITS else derive(timm_name)


def create_backbone(
    name: str | Architecture,
    img_size: int | tuple[int, int] = 512,
    *,
    drop_path: float = 0.1,
    norm_eps: float = 1e-5,
    activation_checkpointing: bool = False,
    experts: Sequence[str] = (),
    expert_channels: int = 0,
    normalization: Normalization | None = None,
    lora: Lora | None = None,
) -> Backbone:
    """Build a backbone with randomly initialised weights.

    Args:
        name: A name of `list_backbones`, or an `Architecture`.
        img_size: Image size in pixels (side, or height and width) to build for; other sizes work as well,
            unless the built network's `architecture.side` is set.
        drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
        norm_eps: Epsilon of the norms in the blocks: 1e-5 for published S5 weights, 1e-6 for MAE.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        experts: Names of the tasks that get an expert or adapters.
        expert_channels: Output channels of an expert; 0 gives a dense backbone regardless of its name.
        normalization: Normalisation of its images, which loaded weights then do not change; None is that of
            the architecture.
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
    if normalization is not None:
        backbone.normalization, backbone.chosen_normalization = normalization, True
    if lora is not None:
        add_adapters(backbone, experts, lora)
    return backbone


def identify(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the dense backbone that fits weights under this package's names; None if there is none."""
    return next((name for name, row in ARCHITECTURES.items() if row.fits(tensors)), None)


def describe(tensors: Mapping[str, torch.Tensor]) -> str:
    """Describe the architecture of weights under this package's names, for messages."""
    name = identify(tensors)
    plain = {key.removeprefix(BODY): tensor for key, tensor in tensors.items()}
    return ARCHITECTURES[name].form if name else form_of(plain) or "an unknown network"
