"""A trained detector from its file: rebuilt from what the file says of itself, or from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from s5.backbones import describe, identify, with_experts
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.loading import load_weights, read_checkpoint
from s5.detection import experiment as det
from s5.detection.config import DetConfig
from s5.detection.network import DetectionModel, Settings, build_detector
from s5.errors import CheckpointError
from s5.training.command import expert_channels, known_tasks
from s5.training.config import NORM_EPS, ConfigError, load_config, load_python_config

NEEDED = ("backbone", "expert_channels", "img_size", "tasks", "settings")
CLASSIFIER = "roi_head.bbox_head.fc_cls.weight"
FPN_NORM = "neck.lateral_convs.0.gn.weight"


@dataclass(frozen=True)
class DetRecipe:
    """What has to be known to rebuild a detector and to predict with it.

    Attributes:
        backbone: name, ``vit_b_moe`` or ``vit_b``.
        img_size: side in pixels of the square that images are resized to.
        expert_channels: channels of the experts, 0 without.
        classes: names of the classes of each task.
        settings: of Oriented R-CNN.
        configured: whether it comes from a configuration, as the checkpoint does not say it itself.
        norm_eps: epsilon of the blocks' norms.
    """

    backbone: str
    img_size: int
    expert_channels: int
    classes: Mapping[str, tuple[str, ...]]
    settings: Settings
    configured: bool = False
    norm_eps: float = NORM_EPS

    def only(self, tasks: Sequence[str]) -> "DetRecipe":
        """The same with some of the tasks; all without names.

        Raises:
            ConfigError: unknown task; lists the known ones.
        """
        return replace(self, classes={task: self.classes[task] for task in known_tasks(self.classes, tasks)})


def load_det_config(path: str | Path, overrides: Sequence[str] = ()) -> DetConfig:
    """A configuration: Python as a user writes it, or YAML as a run leaves it in its folder.

    Raises:
        ConfigError: it cannot be read, or has a bad value.
    """
    read = load_config if Path(path).suffix in (".yaml", ".yml") else load_python_config
    return read(DetConfig, path, [*overrides])


def recipe_of_config(cfg: DetConfig) -> DetRecipe:
    """What a configuration says of a detector.

    Raises:
        ConfigError: the experts are too wide for the backbone.
        DataError: the name of a list of classes is unknown.
    """
    channels = expert_channels(cfg.backbone, cfg.model.expert_channels)
    classes, settings = det.build_classes(cfg), cfg.model.settings()
    return DetRecipe(cfg.backbone, cfg.size, channels, classes, settings, True, cfg.model.norm_eps)


def recipe_of_meta(meta: Mapping[str, Any]) -> DetRecipe | None:
    """What a weights file of detection says of itself; None if it does not say enough."""
    if not all(key in meta for key in NEEDED):
        return None
    known = {field.name for field in fields(Settings)}
    return DetRecipe(
        meta["backbone"],
        meta["img_size"],
        meta["expert_channels"],
        {task: tuple(names) for task, names in meta["tasks"].items()},
        Settings(**{name: value for name, value in meta["settings"].items() if name in known}),
        norm_eps=meta.get("norm_eps", NORM_EPS),
    )


def find_recipe(checkpoint: Path, config: str | None, overrides: Sequence[str] = ()) -> DetRecipe:
    """What a checkpoint says of itself, else what a configuration says.

    Args:
        checkpoint: weights of a whole detector.
        config: configuration, read where the checkpoint does not say enough; by default ``config.yaml``
            beside it.
        overrides: ``section.key=value`` for the configuration.

    Raises:
        CheckpointError: the file cannot be read, or holds no detector.
        ConfigError: there is no configuration where one is needed, it is wrong, or of another detector.
    """
    content = read_checkpoint(checkpoint)
    recipe = recipe_of_meta(_meta(content))
    if recipe is not None:
        return recipe
    _heads(checkpoint, _convert(checkpoint, content))
    beside = checkpoint.parent / "config.yaml"
    if config is None and not beside.is_file():
        raise ConfigError(
            f"{checkpoint} does not say what network it holds: give the configuration that it was trained "
            f"with (--config)"
        )
    path = config or beside
    recipe = recipe_of_config(load_det_config(path, overrides))
    require_fit(checkpoint, content, recipe, str(path))
    return recipe


def require_fit(
    checkpoint: Path, content: Mapping[str, Any], recipe: DetRecipe, where: str = "the configuration"
) -> None:
    """Refuse a checkpoint of another network, other tasks or other classes than a recipe says.

    Tasks of the checkpoint that the recipe lacks do not matter.

    Args:
        checkpoint: its path, for messages.
        content: what is in it.
        recipe: what it should hold.
        where: where the recipe comes from, for messages.

    Raises:
        CheckpointError: it is unreadable, or holds no detector.
        ConfigError: names what differs, and both values.
    """
    weights, meta = _convert(checkpoint, content), _meta(content)
    said_of_data = meta.get("dataset_meta") or {}  # of resumable checkpoints
    heads = _heads(checkpoint, weights)
    backbone = _backbone(weights)
    if backbone != recipe.backbone:
        raise ConfigError(
            f"{checkpoint} holds a {backbone}, {where} has the backbone {recipe.backbone}; give the "
            f"configuration of this checkpoint, or set backbone={backbone}"
        )
    lacking = [task for task in recipe.classes if task not in heads]
    if lacking:
        raise ConfigError(
            f"{checkpoint} has the tasks {', '.join(heads)}, but not {', '.join(lacking)}, which {where} "
            f"has; choose among them with --tasks"
        )
    named = meta.get("tasks") or said_of_data.get("tasks") or {}
    for task, ours in recipe.classes.items():
        theirs = tuple(named.get(task, ()))
        count = len(heads[task][CLASSIFIER]) - 1  # the last row is the background's
        if count != len(ours) or (theirs and theirs != ours):
            said = f"the classes {', '.join(theirs)}" if theirs else f"{count} classes"
            raise ConfigError(
                f"task {task}: {checkpoint} was trained for {said}, {where} has {', '.join(ours)}"
            )
        norm = FPN_NORM in heads[task]
        if norm != recipe.settings.fpn_norm:
            raise ConfigError(
                f"task {task}: {checkpoint} was trained with model.fpn_norm {norm}, {where} has "
                f"{recipe.settings.fpn_norm}; set model.fpn_norm={norm}"
            )
    settings = meta.get("settings") or said_of_data.get("settings") or {}
    enlarge = tuple(settings.get("enlarge", recipe.settings.enlarge))
    if enlarge != tuple(recipe.settings.enlarge):
        raise ConfigError(
            f"{checkpoint} was trained with model.enlarge {enlarge}, {where} has {recipe.settings.enlarge}; "
            f"scores would suffer"
        )


def build_trained(
    recipe: DetRecipe,
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype | None,
) -> DetectionModel:
    """The detector with its weights, on the device, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit, or lack a part of the head of a task.
    """
    detector = build_detector(
        recipe.backbone,
        {task: len(names) for task, names in recipe.classes.items()},
        recipe.img_size,
        expert_channels=recipe.expert_channels,
        norm_eps=recipe.norm_eps,
        settings=recipe.settings,
    )
    load_weights(detector, checkpoint).require_heads()
    return DetectionModel(detector, dtype).to(device).to(memory_format=torch.channels_last).eval()


def _convert(checkpoint: Path, content: Mapping[str, Any]) -> Weights:
    try:
        return convert(content)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def _meta(content: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _heads(checkpoint: Path, weights: Weights) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """The heads of a detector by task."""
    found = {task: head for task, head in weights.heads.items() if CLASSIFIER in head}
    if not found:
        others = (
            f"heads of segmentation ({', '.join(weights.heads)})" if weights.heads else "a backbone alone"
        )
        raise CheckpointError(
            f"{checkpoint} holds no detector but {others}; give the file of a whole detector"
        )
    return found


def _backbone(weights: Weights) -> str:
    """Name of the backbone that has the form of the weights."""
    name = identify(weights.backbone) or f"backbone of {describe(weights.backbone)}"
    return with_experts(name) if weights.experts else name
