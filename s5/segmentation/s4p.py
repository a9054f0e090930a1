"""The pieces of an S4P run, built from its configuration. ``S4_Pretrain/train.py`` puts them together."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.label_table import LabelTable
from s5.data.loaders import TrainingData, fixmatch_loader, resolve_split, validation_loader
from s5.data.sources import LabeledImages, UnlabeledImages, ValidationImages, WeakAugmentation
from s5.launch import Launch
from s5.segmentation.hooks import CollapseWatch, PseudoLabelHook, ViewsHook
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import build_network
from s5.training.config import ConfigError
from s5.training.experiment import Steps, check_splits, common_hooks, training_dtype
from s5.training.hooks import CheckpointHook, DataStateHook, PicturesHook, SafetyHook
from s5.training.work_dir import s4p_files

TASK = "s4p"


def check_data(cfg: S4PConfig, table: LabelTable, work_dir: Path, launch: Launch) -> None:
    """Refuse labeled and validation splits with errors, unless the configuration says not to look.

    Raises:
        DataError: naming the first problems.
    """
    if cfg.data.check:
        parts = {"labeled": cfg.data.labeled.split, "validation": cfg.data.val.split}
        splits = [(name, resolve_split(cfg.data_root, path), table) for name, path in parts.items()]
        check_splits(splits, work_dir, cfg.data.workers, launch)


def build_model(cfg: S4PConfig, backbone: str, num_classes: int, device: torch.device) -> FixMatch:
    """The network, and FixMatch around it.

    Raises:
        ConfigError: fp16 was asked for and the device is a CPU.
    """
    return FixMatch(
        build_network(backbone, {TASK: num_classes}, cfg.data.crop, cfg.model),
        {TASK: cfg.data.val.inference()},
        training_dtype(cfg.precision, device),
        cfg.fixmatch.conf_thresh,
        cfg.fixmatch.lambda_u,
        cfg.fixmatch.ema_decay if cfg.fixmatch.pseudo_labels == "ema" else None,
        cfg.fixmatch.strong.blur_sigma[1],
        cfg.fixmatch.float32_labels,
    )


def build_training_data(cfg: S4PConfig, table: LabelTable, launch: Launch) -> TrainingData:
    """Labeled and, unless their batch size is 0, unlabeled images in one batch.

    Raises:
        ConfigError: a batch of one image, whose batch norm would have nothing to compare.
    """
    data = cfg.data
    synchronised = cfg.sync_bn and launch.world_size > 1 and launch.device.type == "cuda"
    if data.labeled.batch_size + data.unlabeled.batch_size < 2 and not synchronised:
        raise ConfigError(
            f"data.labeled.batch_size = {data.labeled.batch_size} without unlabeled images: batch norm needs "
            f"at least two images in a step"
        )
    weak = WeakAugmentation(data.crop, data.scale, data.flip, data.rotate)
    labeled = LabeledImages(resolve_split(cfg.data_root, data.labeled.split), table, weak)
    unlabeled = None
    if data.unlabeled.batch_size:
        unlabeled = UnlabeledImages(
            resolve_split(cfg.data_root, data.unlabeled.split),
            weak,
            cfg.fixmatch.strong.augmentation(),
            cfg.fixmatch.strong.views,
            table if cfg.fixmatch.pseudo_labels == "stored" else None,
        )
    return fixmatch_loader(
        labeled,
        data.labeled.batch_size,
        unlabeled,
        data.unlabeled.batch_size,
        cfg.seed,
        launch,
        data.workers,
    )


def build_val_loader(cfg: S4PConfig, table: LabelTable, launch: Launch) -> DataLoader:
    """The validation images of this process."""
    images = ValidationImages(resolve_split(cfg.data_root, cfg.data.val.split), table, TASK)
    return validation_loader([images], launch, cfg.data.workers)


def build_steps(cfg: S4PConfig) -> Steps:
    """Length and intervals of the run."""
    schedule = cfg.schedule
    return Steps(schedule.total_iters, schedule.val_interval, schedule.log_interval, schedule)


def build_hooks(
    cfg: S4PConfig, backbone: str, table: LabelTable, data: TrainingData, launch: Launch
) -> tuple[SafetyHook, list[Hook]]:
    """All hooks of the run; the first is the one that says whether a signal stopped it."""
    checkpoints = CheckpointHook(
        cfg.schedule.checkpoint_interval,
        cfg.schedule.keep_checkpoints,
        s4p_files(backbone),
        weights_meta(cfg, backbone, table),
        {"best": ["mIoU"]},
    )
    safety, hooks = common_hooks(cfg, build_steps(cfg), checkpoints, PicturesHook({TASK: table}), launch)
    hooks.append(DataStateHook(data.sampler, data.unlabeled, cfg.data.unlabeled.max_unreadable))
    if data.unlabeled:
        collapse = cfg.fixmatch.collapse
        watch = CollapseWatch(table.classes, collapse.share, collapse.missing_steps)
        hooks += [ViewsHook(table), PseudoLabelHook(watch, cfg.schedule.log_interval)]
    return safety, hooks


def weights_meta(cfg: S4PConfig, backbone: str, table: LabelTable) -> dict[str, Any]:
    """What a weights file says of itself."""
    return {
        "backbone": backbone,
        "decoder_channels": cfg.model.decoder_channels,
        "norm_eps": cfg.model.norm_eps,
        "img_size": cfg.data.crop,
        "tasks": {TASK: list(table.classes)},
        "labels": {TASK: table.as_mapping()},
        "inference": {TASK: asdict(cfg.data.val.inference())},
    }
