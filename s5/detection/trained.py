"""Rebuild a trained detector from its checkpoint's metadata, a configuration or arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from s5.backbones import Lora, dense_name, describe, get_architecture, identify, with_experts
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.reading import read_checkpoint
from s5.data.label_table import distinct_colors
from s5.data.labels import get_classes
from s5.detection.config import DetConfig
from s5.detection.network import DetectionModel, MultiTaskDetector, Settings, build_detector
from s5.errors import CheckpointError, ConfigError
from s5.prediction.spec import ModelSpec, TaskClasses, meta_of, options_of, sizes_of
from s5.training.command import expert_channels, known_tasks
from s5.training.config import config_beside, load_config, load_python_config

NEEDED = ("backbone", "expert_channels", "img_size", "tasks", "settings")
CLASSIFIER = "roi_head.bbox_head.fc_cls.weight"
FPN_CONV = "neck.lateral_convs.0.conv.weight"
FPN_NORM = "neck.lateral_convs.0.gn.weight"
FIRST_FC = "roi_head.bbox_head.shared_fcs.0.weight"


@dataclass(frozen=True)
class DetectionSpec(ModelSpec[DetectionModel]):
    """Description of a detector, sufficient to rebuild it and to predict with it.

    Attributes:
        classes: Names of the classes of each task.
        settings: Settings of Oriented R-CNN.
    """

    classes: Mapping[str, tuple[str, ...]]
    settings: Settings

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "DetectionSpec | None":
        """Build from the metadata of a weight file; None if it is insufficient."""
        if not all(key in meta for key in NEEDED):
            return None
        known = {field.name for field in fields(Settings)}
        settings: dict[str, Any] = {  # safetensors have no tuples
            name: tuple(value) if isinstance(value, list) else value
            for name, value in meta["settings"].items()
            if name in known
        }
        return cls(
            meta["backbone"],
            meta["img_size"],
            meta["expert_channels"],
            {task: tuple(names) for task, names in meta["tasks"].items()},
            Settings(**settings),
            **options_of(meta),
        )

    def meta(self) -> dict[str, Any]:
        """What a weights file says of its model, for :meth:`from_meta`."""
        return {
            **self.backbone_meta(),
            "tasks": {task: list(names) for task, names in self.classes.items()},
            "settings": asdict(self.settings),
        }

    @classmethod
    def from_config(cls, cfg: DetConfig) -> "DetectionSpec":
        """Build from a configuration.

        Raises:
            ConfigError: The experts are too wide for the backbone.
            DataError: The name of a class list is unknown.
        """
        return cls(
            cfg.backbone,
            cfg.size,
            expert_channels(cfg.backbone, cfg.model.expert_channels),
            {name: get_classes(task.classes) for name, task in cfg.tasks.items()},
            cfg.model.settings(),
            norm_eps=cfg.model.norm_eps,
            normalization=cfg.model.normalization,
            configured=True,
        )

    @classmethod
    def from_weights(
        cls, weights: Weights, backbone: str, classes: Mapping[str, tuple[str, ...]]
    ) -> "DetectionSpec":
        """Build from weights without metadata and the facts that the weights do not contain.

        Settings of Oriented R-CNN that do not show in the weights have the published values.

        Raises:
            CheckpointError: There is no detection head for a task.
        """
        size, experts = sizes_of(weights, backbone)
        for task in classes:
            if CLASSIFIER not in weights.heads.get(task, {}):
                raise CheckpointError(
                    f"no detection head {task!r}; the file has {', '.join(weights.heads) or 'none'}"
                )
        head = weights.heads[next(iter(classes))]
        settings = Settings(
            channels=len(head[FPN_CONV]), fc_channels=len(head[FIRST_FC]), fpn_norm=FPN_NORM in head
        )
        return cls(backbone, size, experts, dict(classes), settings, configured=True)

    @property
    def tasks(self) -> Mapping[str, TaskClasses]:
        """Classes of each task."""
        return {
            task: TaskClasses(names, tuple(distinct_colors(len(names))))
            for task, names in self.classes.items()
        }

    def only(self, tasks: Sequence[str]) -> "DetectionSpec":
        """See :meth:`ModelSpec.only`."""
        return replace(self, classes={task: self.classes[task] for task in known_tasks(self.classes, tasks)})

    def build_network(self, lora: Lora | None = None) -> MultiTaskDetector:
        """Build the detector, randomly initialised; see the base class."""
        return build_detector(
            self.backbone,
            {task: len(names) for task, names in self.classes.items()},
            self.img_size,
            expert_channels=self.expert_channels,
            norm_eps=self.norm_eps,
            normalization=self.normalization,
            lora=lora,
            settings=self.settings,
        )

    def wrap(self, network: nn.Module, dtype: torch.dtype | None) -> DetectionModel:
        """Wrap a detector in its model."""
        return DetectionModel(cast(MultiTaskDetector, network), dtype)


def load_det_config(path: str | Path, overrides: Sequence[str] = ()) -> DetConfig:
    """Load a configuration, either the Python file of a user or the YAML file that a run has saved.

    Raises:
        ConfigError: The file cannot be read or has an invalid value.
    """
    read = load_config if Path(path).suffix in (".yaml", ".yml") else load_python_config
    return read(DetConfig, path, [*overrides])


def find_spec(checkpoint: Path, config: str | None, overrides: Sequence[str] = ()) -> DetectionSpec:
    """Build the spec from a checkpoint's metadata, or else from a configuration.

    Args:
        checkpoint: Weights of a full detector.
        config: Configuration for a checkpoint without metadata; by default `config.yaml` beside it.
        overrides: Overrides of the configuration, `section.key=value`.

    Raises:
        CheckpointError: The file cannot be read, or is not a detector.
        ConfigError: A configuration is needed but missing, invalid, or of another detector.
    """
    content = read_checkpoint(checkpoint, lazy=True)
    spec = DetectionSpec.from_meta(meta_of(content))
    if spec is not None:
        return spec
    _heads(checkpoint, _convert(checkpoint, content))
    path = config or config_beside(checkpoint)
    if path is None:
        raise ConfigError(
            f"{checkpoint} has no metadata about its network: give the configuration that it was trained "
            f"with (--config)"
        )
    spec = DetectionSpec.from_config(load_det_config(path, overrides))
    require_fit(checkpoint, content, spec, str(path))
    return spec


def require_fit(
    checkpoint: Path, content: Mapping[str, Any], spec: DetectionSpec, origin: str = "the configuration"
) -> None:
    """Reject a checkpoint whose network, tasks or classes differ from a spec.

    The checkpoint may have additional tasks.

    Args:
        checkpoint: Path of the checkpoint, for messages.
        content: Content of the checkpoint.
        spec: Expected network, tasks and classes.
        origin: Origin of the spec, for messages.

    Raises:
        CheckpointError: The checkpoint is not a detector.
        ConfigError: Checkpoint and spec differ; names the difference and both values.
    """
    weights, meta = _convert(checkpoint, content), meta_of(content)
    data_meta = meta.get("dataset_meta") or {}  # in resumable checkpoints
    heads = _heads(checkpoint, weights)
    backbone = _backbone(weights, spec.backbone)
    if backbone != spec.backbone:
        raise ConfigError(
            f"{checkpoint} holds a {backbone}, {origin} has the backbone {spec.backbone}; give the "
            f"configuration of this checkpoint, or set backbone={backbone}"
        )
    missing = [task for task in spec.classes if task not in heads]
    if missing:
        raise ConfigError(
            f"{checkpoint} has the tasks {', '.join(heads)}, but not {', '.join(missing)}, which {origin} "
            f"has; choose from them with --tasks"
        )
    named = meta.get("tasks") or data_meta.get("tasks") or {}
    for task, expected in spec.classes.items():
        trained = tuple(named.get(task, ()))
        count = len(heads[task][CLASSIFIER]) - 1  # the last row is background
        if count != len(expected) or (trained and trained != expected):
            classes = f"the classes {', '.join(trained)}" if trained else f"{count} classes"
            raise ConfigError(
                f"task {task}: {checkpoint} was trained for {classes}, {origin} has {', '.join(expected)}"
            )
        norm = FPN_NORM in heads[task]
        if norm != spec.settings.fpn_norm:
            raise ConfigError(
                f"task {task}: {checkpoint} was trained with model.fpn_norm {norm}, {origin} has "
                f"{spec.settings.fpn_norm}; set model.fpn_norm={norm}"
            )
    settings = meta.get("settings") or data_meta.get("settings") or {}
    enlarge = tuple(settings.get("enlarge", spec.settings.enlarge))
    if enlarge != tuple(spec.settings.enlarge):
        raise ConfigError(
            f"{checkpoint} was trained with model.enlarge {enlarge}, {origin} has {spec.settings.enlarge}, "
            f"which would lower its scores; set model.enlarge={list(enlarge)}"
        )


def _convert(checkpoint: Path, content: Mapping[str, Any]) -> Weights:
    try:
        return convert(content)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def _heads(checkpoint: Path, weights: Weights) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """Return the heads of a detector by task."""
    heads = {task: head for task, head in weights.heads.items() if CLASSIFIER in head}
    if not heads:
        content = f"segmentation heads ({', '.join(weights.heads)})" if weights.heads else "a backbone only"
        raise CheckpointError(
            f"{checkpoint} holds {content}, not a detector; give the weights of a full detector"
        )
    return heads


def _backbone(weights: Weights, expected: str) -> str:
    """Name of the backbone that fits the weights: the expected one, if it does."""
    if get_architecture(expected).fits(weights.backbone):
        name = dense_name(expected)
    else:
        name = identify(weights.backbone) or f"backbone of {describe(weights.backbone)}"
    return with_experts(name) if weights.experts else name
