"""The multi-dataset fine-tuning experiment: one network with a head, optionally an expert, per dataset."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.backbones import file_name
from s5.data.folders import hold_out, pair_folders
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.data.loaders import TrainingData, resolve_split, tasks_loader, validation_loader
from s5.data.sampler import ValidationSampler
from s5.data.sources import LabeledImages, ValidationImages, WeakAugmentation
from s5.data.splits import Split
from s5.errors import ConfigError
from s5.launch import ALONE, Launch
from s5.segmentation.hooks import TaskStartHook
from s5.segmentation.mdf_config import FoldersConfig, HoldOutConfig, MDFConfig
from s5.segmentation.metrics import SegmentationMetric
from s5.segmentation.multi_dataset import MultiDataset
from s5.segmentation.segmentor import build_network
from s5.segmentation.trained import SegmentationSpec
from s5.training.command import expert_channels, known_tasks, naming
from s5.training.experiment import Experiment, Steps, check_splits, epoch_steps, steps_of_epochs
from s5.training.hooks import PicturesHook, WeightFiles
from s5.training.optim import cosine_schedule

logger = logging.getLogger(__name__)


class MDFExperiment(Experiment[MDFConfig, MultiDataset]):
    """A run on all tasks of the configuration.

    Attributes:
        tables: Label table of each task.
        splits: Training and validation images of each task, set by :meth:`build_data`.
    """

    splits: dict[str, tuple[Split, Split]]

    def __init__(self, cfg: MDFConfig, launch: Launch = ALONE, work_dir: Path = Path()) -> None:
        super().__init__(cfg, launch, work_dir, f"mdf_{file_name(cfg.backbone)}")
        self.tables = build_tables(cfg)

    def new_model(self) -> MultiDataset:
        """Build the network with a head, and for `<backbone>_moe` an expert, per task."""
        cfg = self.cfg
        classes = {name: table.num_classes for name, table in self.tables.items()}
        experts = expert_channels(cfg.backbone, cfg.model.expert_channels)
        return MultiDataset(
            build_network(cfg.backbone, classes, cfg.crop, cfg.model, experts),
            {name: task.evaluation.inference() for name, task in cfg.tasks.items()},
            {name: task.loss for name, task in cfg.tasks.items()},
            self.dtype(),
            {name: task.photometric.blur_sigma[1] for name, task in cfg.tasks.items() if task.photometric},
        )

    def build_training_data(self) -> TrainingData:
        """Batches with the training images of all tasks.

        Raises:
            ConfigError: A task has a single image per step, too few for batch norm, or would start after the
                end of training.
        """
        cfg = self.cfg
        self.splits = {name: find_images(cfg, name) for name in cfg.tasks}
        starts = start_epochs(cfg)
        for name, task in cfg.tasks.items():
            if task.batch_size < 2 and not self.synchronises_batch_norm():
                raise ConfigError(
                    f"tasks.{name}.batch_size = 1: batch norm in the task's decoder needs at least two "
                    f"images per step"
                )
        sources = []
        for name, task in cfg.tasks.items():
            weak = WeakAugmentation(cfg.crop, task.scale, task.flip, task.rotate)
            split, _ = self.splits[name]
            sources.append(LabeledImages(split, self.tables[name], weak, name, task.photometric))
        sizes = [task.batch_size for task in cfg.tasks.values()]
        steps = cfg.schedule.steps_per_epoch
        return tasks_loader(sources, sizes, [*starts.values()], cfg.seed, self.launch, cfg.workers, steps)

    def build_val_loader(self) -> DataLoader:
        """The validation images of all tasks for this process."""
        images = [
            ValidationImages(validation_split(self.cfg, name), table, name)
            for name, table in self.tables.items()
        ]
        return validation_loader(images, self.launch, self.cfg.workers)

    def build_metrics(self) -> list[SegmentationMetric]:
        """Scores of every task, named `<task>/mIoU` ..."""
        return [SegmentationMetric(table, name, prefix=name) for name, table in self.tables.items()]

    def check_data(self) -> None:
        """Reject splits with errors, unless `check` is false."""
        if self.cfg.check:
            splits = [
                (f"{name} {part}", split, self.tables[name])
                for name, pair in self.splits.items()
                for part, split in zip(("training", "validation"), pair, strict=True)
            ]
            check_splits(splits, self.work_dir, self.cfg.workers, self.launch)

    def steps(self) -> Steps:
        """Length and intervals, configured in epochs."""
        return steps_of_epochs(self.cfg.schedule, self.data)

    def lr_schedule(self) -> list[dict[str, Any]]:
        """Cosine decay to zero, per step or per epoch."""
        schedule = self.cfg.schedule
        epoch = epoch_steps(schedule, self.data) if schedule.lr_per_epoch else None
        return cosine_schedule(self.steps().total, self.cfg.optim.warmup_iters, epoch)

    def weight_files(self) -> WeightFiles:
        """A file named `<backbone>_mdf.pth`."""
        return WeightFiles(f"{file_name(self.cfg.backbone)}_mdf.pth")

    def weights_meta(self) -> dict[str, Any]:
        """Metadata of the weight files, sufficient to rebuild the model and predict with it."""
        spec = SegmentationSpec.from_mdf_config(self.cfg, self.cfg.backbone)
        return replace(spec, normalization=self.model.normalization).meta()

    def best_scores(self) -> dict[str, list[str]]:
        """Scores that select the best weights."""
        return best_scores(self.cfg, self.tables)

    def pictures(self) -> Hook:
        """Images, ground truth and predictions."""
        return PicturesHook(self.tables)

    def own_hooks(self) -> list[Hook]:
        """The hook that starts tasks during training."""
        starts = dict(zip(self.tables, self.data.sampler.starts, strict=True))
        return [TaskStartHook(starts, cast(ValidationSampler, self.val_loader.sampler))]


def select_tasks(cfg: MDFConfig, names: Sequence[str] | None) -> MDFConfig:
    """Restrict the configuration to the named tasks, in the order of the file; all tasks without names.

    Raises:
        ConfigError: A task is unknown, or `schedule.best_tasks` contains none of the named ones.
    """
    if not names:
        return cfg
    tasks = {name: cfg.tasks[name] for name in known_tasks(cfg.tasks, names, "the configuration")}
    best = tuple(name for name in cfg.schedule.best_tasks or () if name in tasks) or None
    if cfg.schedule.best_tasks and not best and len(tasks) > 1:
        raise ConfigError(
            f"schedule.best_tasks {list(cfg.schedule.best_tasks)}: --tasks {' '.join(names)} leaves none of "
            f"them; set it to some of the tasks, or to null for all"
        )
    schedule = cfg.schedule.model_copy(update={"best_tasks": best})
    return cfg.model_copy(update={"tasks": tasks, "schedule": schedule})


def start_epochs(cfg: MDFConfig) -> dict[str, int]:
    """Return the first epoch of each task, shifted so that the earliest task starts at epoch 0.

    Raises:
        ConfigError: A task would start after the end of training.
    """
    earliest = min(task.start_epoch for task in cfg.tasks.values())
    if earliest:
        logger.info("no task starts at epoch 0: all start %d epochs earlier than configured", earliest)
    starts = {name: task.start_epoch - earliest for name, task in cfg.tasks.items()}
    for name, epoch in starts.items():
        if epoch >= cfg.schedule.epochs:
            raise ConfigError(
                f"tasks.{name}.start_epoch {cfg.tasks[name].start_epoch}: training ends after "
                f"schedule.epochs {cfg.schedule.epochs}; start it earlier, or leave it out with --tasks"
            )
    return starts


def build_tables(cfg: MDFConfig) -> dict[str, LabelTable]:
    """Return the label table of each task.

    Raises:
        LabelError: A table is unknown or inconsistent.
    """
    return {name: get_table(task.labels, default_name=name) for name, task in cfg.tasks.items()}


def find_images(cfg: MDFConfig, name: str) -> tuple[Split, Split]:
    """Find the training and validation images of a task.

    Raises:
        DataError: A split file or folder is missing or empty, or has images without masks.
    """
    task, train = cfg.tasks[name], _training_images(cfg, name)
    if isinstance(task.val, HoldOutConfig):
        with naming(f"tasks.{name}.val"):
            train, _ = hold_out(train, task.val.hold_out)
    val = validation_split(cfg, name)
    if shared := len({s.image for s in train} & {s.image for s in val}):
        logger.warning("%s: %d images are in both training and validation", name, shared)
    return train, val


def validation_split(cfg: MDFConfig, name: str) -> Split:
    """Find the validation images of a task; training images are read only if some of them are held out.

    Raises:
        DataError: As for :func:`find_images`.
    """
    task = cfg.tasks[name]
    if isinstance(task.val, HoldOutConfig):
        train = _training_images(cfg, name)
        with naming(f"tasks.{name}.val"):
            return hold_out(train, task.val.hold_out)[1]
    with naming(f"tasks.{name}.val"):
        return _images(cfg.data_root, task.val)


def best_scores(cfg: MDFConfig, tables: Mapping[str, LabelTable]) -> dict[str, list[str]]:
    """Scores that select the best weights: their mean over tasks and, for several tasks, that of each one.

    Raises:
        ConfigError: A score without background is chosen for a dataset that has no background class.
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
    """Reject a score without background for a task that has no background class."""
    if metric.endswith("_no_background") and table.background is None:
        raise ConfigError(
            f"{key} {metric}: the labels of {name} have no background class; set background in "
            f"tasks.{name}.labels, or choose another metric"
        )


def _training_images(cfg: MDFConfig, name: str) -> Split:
    with naming(f"tasks.{name}.train"):
        return _images(cfg.data_root, cfg.tasks[name].train)


def _images(root: Path, files: Path | FoldersConfig) -> Split:
    if isinstance(files, FoldersConfig):
        return pair_folders(files.images, files.masks, root)
    return resolve_split(root, files)
