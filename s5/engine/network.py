"""What building the networks of all trees has in common."""

import torch

from s5.engine.config import ConfigError
from s5.engine.sections import ModelConfig
from s5.models.precision import resolve_precision
from s5.models.segmentor import Segmentor, build_segmentor
from s5.models.variants import VARIANTS, get_variant

MOE = "_moe"
BACKBONES = (*VARIANTS, *(f"{name}{MOE}" for name in VARIANTS))
"""Names that multi-task commands take: ``vit_b`` is dense, ``vit_b_moe`` has experts."""


def dense_name(backbone: str) -> str:
    """The name in :data:`~s5.models.variants.VARIANTS`."""
    return backbone.removesuffix(MOE)


def expert_channels(backbone: str, channels: int) -> int:
    """Channels of the experts: 0 for a dense backbone, else those of the configuration.

    Raises:
        ConfigError: more than the backbone is wide.
    """
    if not backbone.endswith(MOE):
        return 0
    width = get_variant(dense_name(backbone)).width
    if channels > width:
        raise ConfigError(
            f"model.expert_channels {channels}: {backbone} has {width} channels, so choose 0 (no experts) to "
            f"{width} (nothing shared in the second linear layer), such as {width // 4}"
        )
    return channels


def training_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Autocast type of a training run, None = float32.

    Raises:
        ConfigError: fp16 was asked for and the device is a CPU.
    """
    dtype = resolve_precision(precision, device)
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU, which scales the loss; on a CPU use bf16 or fp32")
    return dtype


def build_network(
    backbone: str, tasks: dict[str, int], crop: int, cfg: ModelConfig, expert_channels: int = 0
) -> Segmentor:
    """The segmentor of a configuration.

    Args:
        backbone: name of the variant.
        tasks: number of classes by task.
        crop: side of the training crops in pixels, for the position table.
        cfg: the configuration's ``model``.
        expert_channels: 0 for a dense backbone.
    """
    segmentor = build_segmentor(
        backbone,
        tasks,
        img_size=crop,
        channels=cfg.decoder_channels,
        drop_path=cfg.drop_path,
        expert_channels=expert_channels,
        activation_checkpointing=cfg.activation_checkpointing,
    )
    if cfg.compile:
        for block in segmentor.backbone.blocks:
            block.compile()
    return segmentor
