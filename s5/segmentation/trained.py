"""A trained model from its file: rebuilt from what the file says of itself, or from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s5.checkpoints.loading import load_weights, read_checkpoint
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.segmentation import mdf
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.tta import Tta
from s5.segmentation.windows import Inference
from s5.training.command import expert_channels, known_tasks
from s5.training.config import NORM_EPS, ConfigError, load_config

NEEDED = ("backbone", "decoder_channels", "img_size", "labels", "inference")


@dataclass(frozen=True)
class Recipe:
    """What has to be known to rebuild a model and to predict with it.

    Attributes:
        backbone: name, ``vit_b_moe`` or ``vit_b``.
        img_size: side in pixels of the images it was trained on.
        decoder_channels: channels inside the decoders.
        expert_channels: channels of the experts, 0 without.
        tables: classes of each task.
        inference: how images of each task are predicted.
        configured: whether it comes from a configuration, as the checkpoint does not say it itself.
        norm_eps: epsilon of the blocks' norms.
    """

    backbone: str
    img_size: int
    decoder_channels: int
    expert_channels: int
    tables: Mapping[str, LabelTable]
    inference: Mapping[str, Inference]
    configured: bool = False
    norm_eps: float = NORM_EPS

    def only(self, tasks: Sequence[str]) -> "Recipe":
        """The same with some of the tasks; all without names.

        Raises:
            ConfigError: unknown task; lists the known ones.
        """
        kept = known_tasks(self.tables, tasks)
        return replace(
            self,
            tables={task: self.tables[task] for task in kept},
            inference={task: self.inference[task] for task in kept},
        )


def recipe_of_meta(meta: Mapping[str, Any]) -> Recipe | None:
    """What a weights file of multi-dataset training says of itself; None if it does not say enough."""
    if not all(key in meta for key in NEEDED) or not isinstance(meta["labels"], Mapping):
        return None
    return Recipe(
        meta["backbone"],
        meta["img_size"],
        meta["decoder_channels"],
        meta.get("expert_channels", 0),
        {task: get_table(table) for task, table in meta["labels"].items()},
        {task: Inference(**how) for task, how in meta["inference"].items()},
        norm_eps=meta.get("norm_eps", NORM_EPS),
    )


def recipe_of_config(cfg: MDFConfig, backbone: str) -> Recipe:
    """What a configuration says of a model.

    Raises:
        ConfigError: the experts are too wide for the backbone.
    """
    return Recipe(
        backbone,
        cfg.crop,
        cfg.model.decoder_channels,
        expert_channels(backbone, cfg.model.expert_channels),
        mdf.build_tables(cfg),
        {name: task.evaluation.inference() for name, task in cfg.tasks.items()},
        configured=True,
        norm_eps=cfg.model.norm_eps,
    )


def find_config(config: str | None, checkpoint: Path, default: Path) -> Path:
    """The configuration named, else the one beside the checkpoint, else the default."""
    if config is not None:
        return Path(config)
    beside = checkpoint.parent / "config.yaml"
    return beside if beside.is_file() else default


def find_recipe(
    checkpoint: Path,
    backbone: str | None,
    config: Path,
    overrides: list[str],
) -> Recipe:
    """What a checkpoint says of itself, else what a configuration and the name of a backbone say.

    Args:
        checkpoint: weights of a whole model.
        backbone: name of the backbone; needed where the checkpoint does not have it.
        config: configuration, read where the checkpoint does not say enough.
        overrides: ``section.key=value`` for the configuration.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: the backbone is not known, or not the checkpoint's; or the configuration is wrong.
    """
    meta = read_checkpoint(checkpoint).get("meta")
    recipe = recipe_of_meta(meta) if isinstance(meta, Mapping) else None
    if recipe is not None:
        if backbone not in (None, recipe.backbone):
            raise ConfigError(f"--backbone {backbone}: {checkpoint} holds a {recipe.backbone}; leave it out")
        return recipe
    if backbone is None:
        raise ConfigError(
            f"{checkpoint} does not say what network it holds: name it with --backbone (vit_b_moe, vit_b "
            f"...), and the configuration of its tasks with --config (now {config})"
        )
    return recipe_of_config(load_config(MDFConfig, config, overrides), backbone)


def build_trained(
    recipe: Recipe,
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    tta: Tta | None = None,
) -> SegmentationModel:
    """The model with its weights, on the device, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit, or lack the decoder or classifier of a task.
    """
    segmentor = build_segmentor(
        recipe.backbone,
        {task: table.num_classes for task, table in recipe.tables.items()},
        recipe.img_size,
        channels=recipe.decoder_channels,
        expert_channels=recipe.expert_channels,
        norm_eps=recipe.norm_eps,
    )
    load_weights(segmentor, checkpoint).require_heads()
    model = SegmentationModel(segmentor, recipe.inference, dtype, tta)
    return model.to(device).to(memory_format=torch.channels_last).eval()
