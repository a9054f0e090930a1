"""The pieces of a detection run, built from its configuration. The entry scripts put them together."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.loaders import TrainingData
from s5.data.oriented.classes import get_classes
from s5.data.oriented.sources import (
    OrientedImages,
    OrientedValidation,
    objects_loader,
    objects_validation_loader,
)
from s5.detection.config import DetConfig, DetTestConfig, ObjectsConfig
from s5.detection.hooks import BoxPicturesHook
from s5.detection.network import DetectionModel, Settings, build_detector
from s5.launch import Launch
from s5.training.command import BACKBONES, dense_name, expert_channels, naming
from s5.training.config import ConfigError
from s5.training.experiment import Steps, common_hooks, training_dtype
from s5.training.hooks import CheckpointHook, DataStateHook, SafetyHook
from s5.training.optim import step_schedule
from s5.training.work_dir import det_files

BEST = "mAP50"
Classes = dict[str, tuple[str, ...]]


def build_classes(cfg: DetConfig) -> Classes:
    """Names of the classes of each task.

    Raises:
        DataError: the name of a list of classes is unknown.
    """
    return {name: get_classes(task.classes) for name, task in cfg.tasks.items()}


def build_model(cfg: DetConfig, classes: Classes, device: torch.device) -> DetectionModel:
    """The detector, randomly initialised, and what is around it.

    Raises:
        ConfigError: unknown backbone, too wide experts, or fp16 on a CPU.
    """
    if cfg.backbone not in BACKBONES:
        raise ConfigError(f"backbone {cfg.backbone!r}: must be one of {', '.join(BACKBONES)}")
    model = cfg.model
    detector = build_detector(
        dense_name(cfg.backbone),
        {name: len(names) for name, names in classes.items()},
        cfg.size,
        expert_channels=expert_channels(cfg.backbone, model.expert_channels),
        drop_path=model.drop_path,
        norm_eps=model.norm_eps,
        activation_checkpointing=model.activation_checkpointing,
        settings=build_settings(cfg),
    )
    if model.compile:
        detector.backbone.compile_blocks()
    weights = {name: task.weight for name, task in cfg.tasks.items()}
    return DetectionModel(detector, training_dtype(cfg.precision, device), weights)


def build_settings(cfg: DetConfig) -> Settings:
    """What the configuration chooses of Oriented R-CNN."""
    names = Settings.__dataclass_fields__
    return Settings(**{name: getattr(cfg.model, name) for name in names})


def build_training_data(cfg: DetConfig, classes: Classes, launch: Launch) -> TrainingData:
    """The training images of all tasks in one batch.

    Raises:
        DataError: images or annotations are missing or wrong, or fewer than one global step takes.
    """
    sources = [_training_images(cfg, name, classes[name]) for name in cfg.tasks]
    batch_sizes = [task.batch_size for task in cfg.tasks.values()]
    about = {"settings": asdict(build_settings(cfg))}
    return objects_loader(sources, batch_sizes, cfg.seed, launch, cfg.workers, about)


def build_val_loader(cfg: DetConfig, classes: Classes, launch: Launch, part: str = "val") -> DataLoader:
    """The validation images of this process, of all tasks; with ``part`` "test", those to be submitted.

    Raises:
        DataError: images or annotations are missing or wrong.
    """
    parts = [_whole_images(cfg, name, classes[name], part) for name in cfg.tasks]
    return objects_validation_loader(parts, launch, cfg.workers)


def build_steps(cfg: DetConfig, data: TrainingData) -> Steps:
    """Length and intervals of the run in steps."""
    epoch = epoch_steps(cfg, data)
    schedule = cfg.schedule
    return Steps(schedule.epochs * epoch, schedule.val_interval * epoch, schedule.log_interval, schedule)


def build_schedule(cfg: DetConfig, data: TrainingData) -> list[dict[str, Any]]:
    """The learning rate, which falls at the milestones."""
    epoch = epoch_steps(cfg, data)
    milestones = [epoch * milestone for milestone in cfg.schedule.milestones]
    return step_schedule(milestones, cfg.schedule.gamma, cfg.optim.warmup_iters)


def epoch_steps(cfg: DetConfig, data: TrainingData) -> int:
    """Steps of an epoch."""
    return cfg.schedule.steps_per_epoch or data.sampler.epoch_steps


def build_hooks(
    cfg: DetConfig, classes: Classes, data: TrainingData, launch: Launch
) -> tuple[SafetyHook, list[Hook]]:
    """All hooks of the run; the first is the one that says whether a signal stopped it."""
    schedule = cfg.schedule
    scores = {task: [f"{task}/{BEST}"] for task in classes}
    best = {"best": [score for part in scores.values() for score in part]}
    if len(scores) > 1:
        best |= {f"best_{task}": score for task, score in scores.items()}
    checkpoints = CheckpointHook(
        schedule.checkpoint_interval * epoch_steps(cfg, data),
        schedule.keep_checkpoints,
        det_files(cfg.backbone),
        weights_meta(cfg, classes),
        best,
    )
    pictures = BoxPicturesHook(classes)
    safety, hooks = common_hooks(cfg, build_steps(cfg, data), checkpoints, pictures, launch)
    return safety, [*hooks, DataStateHook(data.sampler)]


def weights_meta(cfg: DetConfig, classes: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What a weights file says of itself; enough to predict with it."""
    return {
        "backbone": cfg.backbone,
        "expert_channels": expert_channels(cfg.backbone, cfg.model.expert_channels),
        "img_size": cfg.size,
        "norm_eps": cfg.model.norm_eps,
        "tasks": {name: list(names) for name, names in classes.items()},
        "settings": asdict(build_settings(cfg)),
    }


def _training_images(cfg: DetConfig, name: str, classes: tuple[str, ...]) -> OrientedImages:
    task = cfg.tasks[name]
    with naming(f"tasks.{name}.train"):
        return OrientedImages(
            **_where(cfg.data_root, task.train),
            classes=classes,
            size=cfg.size,
            flip=task.flip,
            keep_empty=not task.skip_empty,
            train_difficult=task.train_difficult,
            leave_out=task.leave_out,
            ignore_below=task.ignore_below,
            name=name,
        )


def _whole_images(cfg: DetConfig, name: str, classes: tuple[str, ...], part: str) -> OrientedValidation:
    task = cfg.tasks[name]
    with naming(f"tasks.{name}.{part}"):
        return OrientedValidation(
            **_where(cfg.data_root, getattr(task, part)),
            classes=classes,
            task=name,
            size=cfg.size,
            leave_out=task.leave_out,
        )


def _where(root: Path, objects: ObjectsConfig | DetTestConfig) -> dict[str, Any]:
    def below(folders: Path | tuple[Path, ...]) -> list[Path]:
        return [root / folder for folder in (folders if isinstance(folders, tuple) else (folders,))]

    return {
        "images": below(objects.images),
        "annotations": None if objects.annotations is None else below(objects.annotations),
        "split": None if objects.names is None else below(objects.names),
    }
