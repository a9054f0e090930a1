"""The pieces of a multi-dataset run, built from its configuration. The entry scripts put them together."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.draws import Photometric
from s5.data.folders import hold_out, pair_folders
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.data.loaders import TrainingData, resolve_split, tasks_loader, validation_loader
from s5.data.sources import LabeledImages, ValidationImages, WeakAugmentation
from s5.data.splits import Split
from s5.launch import Launch
from s5.segmentation.hooks import TaskStartHook
from s5.segmentation.mdf_config import FoldersConfig, HoldOutConfig, MDFConfig, TaskConfig
from s5.segmentation.metrics import SegmentationMetric
from s5.segmentation.multi_dataset import MultiDataset
from s5.segmentation.segmentor import build_network
from s5.training.command import dense_name, expert_channels, naming
from s5.training.config import ConfigError
from s5.training.experiment import Steps, check_splits, common_hooks, training_dtype
from s5.training.hooks import CheckpointHook, DataStateHook, PicturesHook, SafetyHook
from s5.training.optim import cosine_schedule
from s5.training.work_dir import mdf_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One dataset of a run.

    Attributes:
        name: its key in the configuration.
        cfg: its section.
        table: its classes.
        train: training images.
        val: validation images.
    """

    name: str
    cfg: TaskConfig
    table: LabelTable
    train: Split
    val: Split


def select_tasks(cfg: MDFConfig, names: Sequence[str] | None) -> MDFConfig:
    """The configuration with the named tasks alone, in the order of the file; all without names.

    Raises:
        ConfigError: a name that the configuration lacks, or the best weights of several tasks would be chosen
            by none of them.
    """
    if not names:
        return cfg
    unknown = [name for name in names if name not in cfg.tasks]
    if unknown:
        raise ConfigError(
            f"--tasks {unknown[0]}: the configuration has no such task; it has {', '.join(cfg.tasks)}"
        )
    tasks = {name: task for name, task in cfg.tasks.items() if name in names}
    best = tuple(name for name in cfg.schedule.best_tasks or () if name in tasks) or None
    if cfg.schedule.best_tasks and not best and len(tasks) > 1:
        raise ConfigError(
            f"schedule.best_tasks {list(cfg.schedule.best_tasks)}: --tasks {' '.join(names)} leaves none of "
            f"them; set it to some of the tasks, or to null for all"
        )
    schedule = cfg.schedule.model_copy(update={"best_tasks": best})
    return cfg.model_copy(update={"tasks": tasks, "schedule": schedule})


def start_epochs(cfg: MDFConfig) -> dict[str, int]:
    """The epoch in which each task starts; the earliest starts at once, whatever the configuration says.

    Raises:
        ConfigError: a task would start after the end.
    """
    earliest = min(task.start_epoch for task in cfg.tasks.values())
    if earliest:
        logger.info("no task starts at epoch 0: all start %d epochs earlier than configured", earliest)
    starts = {name: task.start_epoch - earliest for name, task in cfg.tasks.items()}
    for name, epoch in starts.items():
        if epoch >= cfg.schedule.epochs:
            raise ConfigError(
                f"tasks.{name}.start_epoch {cfg.tasks[name].start_epoch}: training ends after "
                f"schedule.epochs {cfg.schedule.epochs}; let it start earlier, or leave it out with --tasks"
            )
    return starts


def build_tables(cfg: MDFConfig) -> dict[str, LabelTable]:
    """The classes of each task.

    Raises:
        LabelError: an unknown table, or one that contradicts itself.
    """
    return {name: get_table(task.labels, default_name=name) for name, task in cfg.tasks.items()}


def build_tasks(cfg: MDFConfig) -> list[Task]:
    """Find the images of every task.

    Raises:
        DataError: a split file or folder is missing, empty, or has images without masks.
    """
    tables = build_tables(cfg)
    tasks = []
    for name, task in cfg.tasks.items():
        train = _training_images(cfg, name)
        if isinstance(task.val, HoldOutConfig):
            with naming(f"tasks.{name}.val"):
                train, _ = hold_out(train, task.val.hold_out)
        val = validation_split(cfg, name)
        if shared := len({s.image for s in train} & {s.image for s in val}):
            logger.warning("%s: %d images are in training and validation", name, shared)
        tasks.append(Task(name, task, tables[name], train, val))
    return tasks


def validation_split(cfg: MDFConfig, name: str) -> Split:
    """The validation images of a task; those for training need not be there unless some of them are held out.

    Raises:
        DataError: as :func:`build_tasks`.
    """
    task = cfg.tasks[name]
    if isinstance(task.val, HoldOutConfig):
        train = _training_images(cfg, name)
        with naming(f"tasks.{name}.val"):
            return hold_out(train, task.val.hold_out)[1]
    with naming(f"tasks.{name}.val"):
        return _images(cfg.data_root, task.val)


def check_data(cfg: MDFConfig, tasks: Sequence[Task], work_dir: Path, launch: Launch) -> None:
    """Refuse splits with errors, unless the configuration says not to look.

    Raises:
        DataError: naming the first problems.
    """
    if cfg.check:
        splits = [
            (f"{task.name} {part}", split, task.table)
            for task in tasks
            for part, split in (("training", task.train), ("validation", task.val))
        ]
        check_splits(splits, work_dir, cfg.workers, launch)


def build_model(
    cfg: MDFConfig, backbone: str, tables: dict[str, LabelTable], device: torch.device
) -> MultiDataset:
    """The network with a head, and under ``<backbone>_moe`` an expert, for every task.

    Raises:
        ConfigError: fp16 was asked for and the device is a CPU, or the experts are too wide.
    """
    classes = {name: table.num_classes for name, table in tables.items()}
    experts = expert_channels(backbone, cfg.model.expert_channels)
    return MultiDataset(
        build_network(dense_name(backbone), classes, cfg.crop, cfg.model, experts),
        {name: task.evaluation.inference() for name, task in cfg.tasks.items()},
        {name: task.loss.loss() for name, task in cfg.tasks.items()},
        training_dtype(cfg.precision, device),
        {name: task.photometric.blur_sigma[1] for name, task in cfg.tasks.items() if task.photometric},
    )


def build_training_data(cfg: MDFConfig, tasks: Sequence[Task], launch: Launch) -> TrainingData:
    """The training images of all tasks in one batch.

    Raises:
        ConfigError: a batch of one image, whose batch norm would have nothing to compare, or a task that
            would start after the end.
        DataError: fewer images than one global step takes.
    """
    starts = start_epochs(cfg)
    synchronised = cfg.sync_bn and launch.world_size > 1 and launch.device.type == "cuda"
    for task in tasks:
        if task.cfg.batch_size < 2 and not synchronised:
            raise ConfigError(
                f"tasks.{task.name}.batch_size = 1: batch norm in the task's decoder needs at least two "
                f"images in a step"
            )
    sources = [
        LabeledImages(
            task.train,
            task.table,
            WeakAugmentation(cfg.crop, task.cfg.scale, task.cfg.flip, task.cfg.rotate),
            task.name,
            None if task.cfg.photometric is None else Photometric(**task.cfg.photometric.model_dump()),
        )
        for task in tasks
    ]
    return tasks_loader(
        sources,
        [task.cfg.batch_size for task in tasks],
        [starts[task.name] for task in tasks],
        cfg.seed,
        launch,
        cfg.workers,
        cfg.schedule.steps_per_epoch,
    )


def build_val_loader(
    cfg: MDFConfig, splits: Mapping[str, Split], tables: Mapping[str, LabelTable], launch: Launch
) -> DataLoader:
    """The validation images of this process, of all tasks in ``splits``."""
    images = [ValidationImages(split, tables[task], task) for task, split in splits.items()]
    return validation_loader(images, launch, cfg.workers)


def build_metrics(tables: dict[str, LabelTable]) -> list[SegmentationMetric]:
    """Scores of every task, named ``<task>/mIoU`` ..."""
    return [SegmentationMetric(table, name, prefix=name) for name, table in tables.items()]


def build_steps(cfg: MDFConfig, data: TrainingData) -> Steps:
    """Length and intervals of the run in steps."""
    epoch = cfg.schedule.steps_per_epoch or data.sampler.epoch_steps
    schedule = cfg.schedule
    return Steps(schedule.epochs * epoch, schedule.val_interval * epoch, schedule.log_interval, schedule)


def build_schedule(cfg: MDFConfig, steps: Steps) -> list[dict[str, Any]]:
    """The learning rate: cosine to zero, by step or by epoch.

    Raises:
        ConfigError: the warm-up takes the whole run.
    """
    epoch = steps.total // cfg.schedule.epochs if cfg.schedule.lr_per_epoch else None
    return cosine_schedule(steps.total, cfg.optim.warmup_iters, epoch)


def build_hooks(
    cfg: MDFConfig,
    backbone: str,
    tables: dict[str, LabelTable],
    data: TrainingData,
    val_loader: DataLoader,
    launch: Launch,
) -> tuple[SafetyHook, list[Hook]]:
    """All hooks of the run; the first is the one that says whether a signal stopped it."""
    steps = build_steps(cfg, data)
    checkpoints = CheckpointHook(
        cfg.schedule.checkpoint_interval * steps.total // cfg.schedule.epochs,
        cfg.schedule.keep_checkpoints,
        mdf_files(backbone),
        weights_meta(cfg, backbone, tables),
        best_scores(cfg, tables),
    )
    safety, hooks = common_hooks(cfg, steps, checkpoints, PicturesHook(tables), launch)
    starts = dict(zip(tables, data.sampler.starts, strict=True))
    hooks += [DataStateHook(data.sampler), TaskStartHook(starts, val_loader.sampler)]  # type: ignore[arg-type]
    return safety, hooks


def best_scores(cfg: MDFConfig, tables: Mapping[str, LabelTable]) -> dict[str, list[str]]:
    """By which scores the best weights are chosen: on average, and of each of several tasks.

    Raises:
        ConfigError: a score without background, of a dataset that has none.
    """
    own = {name: task.evaluation.metric for name, task in cfg.tasks.items()}
    for name, metric in own.items():
        _require_background(name, tables[name], f"tasks.{name}.evaluation.metric", metric)
    if len(own) == 1:
        return {"best": [f"{name}/{metric}" for name, metric in own.items()]}
    schedule = cfg.schedule
    averaged = schedule.best_tasks or tuple(own)
    if schedule.best_metric is not None:
        for name in averaged:
            _require_background(name, tables[name], "schedule.best_metric", schedule.best_metric)
    return {
        "best": [f"{name}/{schedule.best_metric or own[name]}" for name in averaged],
        **{f"best_{name}": [f"{name}/{metric}"] for name, metric in own.items()},
    }


def _require_background(name: str, table: LabelTable, key: str, metric: str) -> None:
    """Refuse a score without background of a task whose classes have none."""
    if metric.endswith("_no_background") and table.background is None:
        raise ConfigError(
            f"{key} {metric}: the labels of {name} name no background; set background in "
            f"tasks.{name}.labels, or choose another metric"
        )


def weights_meta(cfg: MDFConfig, backbone: str, tables: dict[str, LabelTable]) -> dict[str, Any]:
    """What a weights file says of itself; enough to predict with it."""
    return {
        "backbone": backbone,
        "decoder_channels": cfg.model.decoder_channels,
        "norm_eps": cfg.model.norm_eps,
        "expert_channels": expert_channels(backbone, cfg.model.expert_channels),
        "img_size": cfg.crop,
        "tasks": {name: list(table.classes) for name, table in tables.items()},
        "labels": {name: table.as_mapping() for name, table in tables.items()},
        "inference": {
            name: task.evaluation.model_dump(mode="json", exclude={"metric"})
            for name, task in cfg.tasks.items()
        },
    }


def _training_images(cfg: MDFConfig, name: str) -> Split:
    with naming(f"tasks.{name}.train"):
        return _images(cfg.data_root, cfg.tasks[name].train)


def _images(root: Path, where: Path | FoldersConfig) -> Split:
    if isinstance(where, FoldersConfig):
        return pair_folders(where.images, where.masks, root)
    return resolve_split(root, where)
