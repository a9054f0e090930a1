"""The pieces of an S4P run, built from its configuration. ``S4_Pretrain/train.py`` puts them together."""

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.build import TrainingData, fixmatch_loader, resolve_split, validation_loader
from s5.data.check import require_clean
from s5.data.datasets import LabeledImages, UnlabeledImages, WeakAugmentation
from s5.data.labels import LabelTable
from s5.engine.config import ConfigError
from s5.engine.hooks import (
    CheckpointHook,
    DataStateHook,
    PicturesHook,
    ProgressHook,
    PseudoLabelHook,
    SafetyHook,
    SharedBuffersHook,
    SummaryHook,
    ThroughputHook,
)
from s5.engine.launch import Launch, main_process_first
from s5.engine.s4p_config import S4PConfig
from s5.models.fixmatch import FixMatch
from s5.models.precision import resolve_precision
from s5.models.segmentation_model import Inference
from s5.models.segmentor import build_segmentor

logger = logging.getLogger(__name__)

TASK = "s4p"


def check_data(cfg: S4PConfig, table: LabelTable, work_dir: Path, launch: Launch) -> None:
    """Refuse labeled and validation splits with errors; a clean result is remembered in the work folder.

    Raises:
        DataError: naming the first problems.
    """
    with main_process_first(launch) as first:
        if first and cfg.data.check:
            for name, path in (("labeled", cfg.data.labeled.split), ("validation", cfg.data.val.split)):
                logger.info("checking the %s split %s", name, path)
                split = resolve_split(cfg.data_root, path)
                require_clean(split, table, work_dir / "checks", max(cfg.data.workers, 1))


def build_model(cfg: S4PConfig, backbone: str, num_classes: int, device: torch.device) -> FixMatch:
    """The network, and FixMatch around it.

    Raises:
        ConfigError: fp16 was asked for and the device is a CPU.
    """
    dtype = resolve_precision(cfg.precision, device)
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU, which scales the loss; on a CPU use bf16 or fp32")
    segmentor = build_segmentor(
        backbone,
        {TASK: num_classes},
        img_size=cfg.data.crop,
        channels=cfg.model.decoder_channels,
        drop_path=cfg.model.drop_path,
        activation_checkpointing=cfg.model.activation_checkpointing,
    )
    if cfg.model.compile:
        for block in segmentor.backbone.blocks:
            block.compile()
    return FixMatch(
        segmentor,
        Inference(cfg.data.val.mode, cfg.data.val.crop, cfg.data.val.stride),
        dtype,
        cfg.fixmatch.conf_thresh,
        cfg.fixmatch.lambda_u,
        cfg.fixmatch.ema_decay if cfg.fixmatch.pseudo_labels == "ema" else None,
        cfg.fixmatch.strong.blur_sigma[1],
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
        seed=cfg.seed,
        rank=launch.rank,
        world_size=launch.world_size,
        workers=data.workers,
        pin_memory=launch.device.type == "cuda",
    )


def build_val_loader(cfg: S4PConfig, table: LabelTable) -> DataLoader:
    """The validation images of this process."""
    return validation_loader(resolve_split(cfg.data_root, cfg.data.val.split), table, cfg.data.workers)


def build_hooks(
    cfg: S4PConfig, backbone: str, table: LabelTable, data: TrainingData, launch: Launch
) -> tuple[SafetyHook, list[Hook]]:
    """All hooks of the run; the first is the one that says whether a signal stopped it."""
    safety = SafetyHook()
    schedule = cfg.schedule
    hooks: list[Hook] = [
        safety,
        ThroughputHook(data.sampler.batch_size * launch.world_size, schedule.log_interval, launch.device),
        CheckpointHook(
            schedule.checkpoint_interval,
            schedule.keep_checkpoints,
            backbone,
            weights_meta(cfg, backbone, table),
        ),
        SharedBuffersHook(),
        SummaryHook(),
        PicturesHook(table),
        ProgressHook(),
    ]
    hooks.append(DataStateHook(data.sampler, data.unlabeled, cfg.data.unlabeled.max_unreadable))
    if data.unlabeled:
        hooks.append(PseudoLabelHook(table.classes, schedule.log_interval))
    return safety, hooks


def weights_meta(cfg: S4PConfig, backbone: str, table: LabelTable) -> dict[str, Any]:
    """What a weights file says of itself."""
    return {
        "backbone": backbone,
        "decoder_channels": cfg.model.decoder_channels,
        "img_size": cfg.data.crop,
        "tasks": {TASK: list(table.classes)},
        "labels": table.name,
    }
