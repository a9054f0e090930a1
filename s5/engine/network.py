"""The segmentor of a configuration."""

from s5.engine.sections import ModelConfig
from s5.models.segmentor import Segmentor, build_segmentor


def build_network(
    backbone: str, tasks: dict[str, int], crop: int, cfg: ModelConfig, expert_channels: int = 0
) -> Segmentor:
    """The segmentor of a configuration.

    Args:
        backbone: name of the variant.
        tasks: number of classes by task.
        crop: side of the training crops in pixels, for the positional embedding.
        cfg: the configuration's ``model``.
        expert_channels: 0 for a dense backbone.
    """
    segmentor = build_segmentor(
        backbone,
        tasks,
        img_size=crop,
        channels=cfg.decoder_channels,
        drop_path=cfg.drop_path,
        norm_eps=cfg.norm_eps,
        expert_channels=expert_channels,
        activation_checkpointing=cfg.activation_checkpointing,
    )
    if cfg.compile:
        segmentor.backbone.compile_blocks()
    return segmentor
