"""How to rebuild a trained detector: from its checkpoint's metadata, a configuration or arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from s5.backbones import describe, identify, with_experts
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.loading import read_checkpoint
from s5.data.label_table import distinct_colors
from s5.data.labels import get_classes
from s5.detection.config import DetConfig
from s5.detection.network import DetectionModel, MultiTaskDetector, Settings, build_detector
from s5.errors import CheckpointError, ConfigError
from s5.prediction.spec import ModelSpec, TaskClasses, meta_of, sizes_of
from s5.training.command import expert_channels, known_tasks
from s5.training.config import NORM_EPS, load_config, load_python_config

NEEDED = ("backbone", "expert_channels", "img_size", "tasks", "settings")
CLASSIFIER = "roi_head.bbox_head.fc_cls.weight"
FPN_CONV = "neck.lateral_convs.0.conv.weight"
FPN_NORM = "neck.lateral_convs.0.gn.weight"
FIRST_FC = "roi_head.bbox_head.shared_fcs.0.weight"


@dataclass(frozen=True)
class DetectionSpec(ModelSpec[DetectionModel]):
    """What has to be known to rebuild a detector and to predict with it.

    Attributes:
        classes: Names of the classes of each task.
        settings: Of Oriented R-CNN.
    """

    classes: Mapping[str, tuple[str, ...]]
    settings: Settings

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "DetectionSpec | None":
        """From the metadata of a weights file; None if they are not enough."""
        if not all(key in meta for key in NEEDED):
            return None
        known = {field.name for field in fields(Settings)}
        return cls(
            meta["backbone"],
            meta["img_size"],
            meta["expert_channels"],
            {task: tuple(names) for task, names in meta["tasks"].items()},
            Settings(**{name: value for name, value in meta["settings"].items() if name in known}),
            norm_eps=meta.get("norm_eps", NORM_EPS),
        )

    def meta(self) -> dict[str, Any]:
        """What a weights file says of its model, for :meth:`from_meta`."""
        return {
            "backbone": self.backbone,
            "expert_channels": self.expert_channels,
            "img_size": self.img_size,
            "norm_eps": self.norm_eps,
            "tasks": {task: list(names) for task, names in self.classes.items()},
            "settings": asdict(self.settings),
        }

    @classmethod
    def from_config(cls, cfg: DetConfig) -> "DetectionSpec":
        """From a configuration.

        Raises:
            ConfigError: The experts are too wide for the backbone.
            DataError: The name of a list of classes is unknown.
        """
        return cls(
            cfg.backbone,
            cfg.size,
            expert_channels(cfg.backbone, cfg.model.expert_channels),
            {name: get_classes(task.classes) for name, task in cfg.tasks.items()},
            cfg.model.settings(),
            norm_eps=cfg.model.norm_eps,
            configured=True,
        )

    @classmethod
    def from_weights(
        cls, weights: Weights, backbone: str, classes: Mapping[str, tuple[str, ...]]
    ) -> "DetectionSpec":
        """From the weights of a file without metadata, and what they do not tell.

        What weights do not show of Oriented R-CNN has the published values.

        Raises:
            CheckpointError: There is no detection head for a task.
        """
        size, experts = sizes_of(weights, backbone)
        for task in classes:
            if CLASSIFIER not in weights.heads.get(task, {}):
                raise CheckpointError(
                    f"no detection head {task!r}; there are {', '.join(weights.heads) or 'none'}"
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

    def build_network(self) -> MultiTaskDetector:
        """The detector, randomly initialised."""
        return build_detector(
            self.backbone,
            {task: len(names) for task, names in self.classes.items()},
            self.img_size,
            expert_channels=self.expert_channels,
            norm_eps=self.norm_eps,
            settings=self.settings,
        )

    def wrap(self, network: nn.Module, dtype: torch.dtype | None) -> DetectionModel:
        """The model around a detector."""
        return DetectionModel(cast(MultiTaskDetector, network), dtype)


def load_det_config(path: str | Path, overrides: Sequence[str] = ()) -> DetConfig:
    """A configuration: Python as a user writes it, or YAML as a run leaves it in its folder.

    Raises:
        ConfigError: It cannot be read, or has a bad value.
    """
    read = load_config if Path(path).suffix in (".yaml", ".yml") else load_python_config
    return read(DetConfig, path, [*overrides])


def find_spec(checkpoint: Path, config: str | None, overrides: Sequence[str] = ()) -> DetectionSpec:
    """From a checkpoint's metadata, else from a configuration.

    Args:
        checkpoint: Weights of a whole detector.
        config: Read for a checkpoint without metadata; by default `config.yaml` beside it.
        overrides: `section.key=value` for the configuration.

    Raises:
        CheckpointError: The file cannot be read, or holds no detector.
        ConfigError: There is no configuration where one is needed, it is wrong, or of another detector.
    """
    content = read_checkpoint(checkpoint, lazy=True)
    spec = DetectionSpec.from_meta(meta_of(content))
    if spec is not None:
        return spec
    _heads(checkpoint, _convert(checkpoint, content))
    beside = checkpoint.parent / "config.yaml"
    if config is None and not beside.is_file():
        raise ConfigError(
            f"{checkpoint} does not say what network it holds: give the configuration that it was trained "
            f"with (--config)"
        )
    path = config or beside
    spec = DetectionSpec.from_config(load_det_config(path, overrides))
    require_fit(checkpoint, content, spec, str(path))
    return spec


def require_fit(
    checkpoint: Path, content: Mapping[str, Any], spec: DetectionSpec, where: str = "the configuration"
) -> None:
    """Refuse a checkpoint whose network, tasks or classes differ from a spec.

    Further tasks of the checkpoint do not matter.

    Args:
        checkpoint: Its path, for messages.
        content: Of the checkpoint.
        spec: What it should hold.
        where: The source of the spec, for messages.

    Raises:
        CheckpointError: It holds no detector.
        ConfigError: Names what differs, and both values.
    """
    weights, meta = _convert(checkpoint, content), meta_of(content)
    said_of_data = meta.get("dataset_meta") or {}  # of resumable checkpoints
    heads = _heads(checkpoint, weights)
    backbone = _backbone(weights)
    if backbone != spec.backbone:
        raise ConfigError(
            f"{checkpoint} holds a {backbone}, {where} has the backbone {spec.backbone}; give the "
            f"configuration of this checkpoint, or set backbone={backbone}"
        )
    lacking = [task for task in spec.classes if task not in heads]
    if lacking:
        raise ConfigError(
            f"{checkpoint} has the tasks {', '.join(heads)}, but not {', '.join(lacking)}, which {where} "
            f"has; choose among them with --tasks"
        )
    named = meta.get("tasks") or said_of_data.get("tasks") or {}
    for task, ours in spec.classes.items():
        theirs = tuple(named.get(task, ()))
        count = len(heads[task][CLASSIFIER]) - 1  # the last row is the background's
        if count != len(ours) or (theirs and theirs != ours):
            said = f"the classes {', '.join(theirs)}" if theirs else f"{count} classes"
            raise ConfigError(
                f"task {task}: {checkpoint} was trained for {said}, {where} has {', '.join(ours)}"
            )
        norm = FPN_NORM in heads[task]
        if norm != spec.settings.fpn_norm:
            raise ConfigError(
                f"task {task}: {checkpoint} was trained with model.fpn_norm {norm}, {where} has "
                f"{spec.settings.fpn_norm}; set model.fpn_norm={norm}"
            )
    settings = meta.get("settings") or said_of_data.get("settings") or {}
    enlarge = tuple(settings.get("enlarge", spec.settings.enlarge))
    if enlarge != tuple(spec.settings.enlarge):
        raise ConfigError(
            f"{checkpoint} was trained with model.enlarge {enlarge}, {where} has {spec.settings.enlarge}; "
            f"scores would suffer"
        )


def _convert(checkpoint: Path, content: Mapping[str, Any]) -> Weights:
    try:
        return convert(content)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


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
