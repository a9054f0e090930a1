"""One training run on mmengine's Runner, the same for all trees."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.compat.memory import keep_freed_memory
from s5.compat.precision import resolve_precision
from s5.data.check import require_clean
from s5.data.label_table import LabelTable
from s5.data.loaders import TrainingData, stop_workers
from s5.data.mask_survey import MaskSurvey, refuse_together, require_readable_together
from s5.data.splits import Split
from s5.launch import Launch, main_process_first
from s5.training.config import ConfigError, OptimConfig, Section, SkipConfig
from s5.training.guarded_step import SkippedSteps
from s5.training.hooks import (
    CheckpointHook,
    ConfigFileHook,
    ProgressHook,
    SafetyHook,
    SharedBuffersHook,
    SummaryHook,
    ThroughputHook,
)
from s5.training.model import TaskModel
from s5.training.optim import build_optim_wrapper, param_groups
from s5.training.reports import build_visualizer
from s5.training.runner import S5Runner, log_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """Length and intervals of a run in iterations, and how many may be skipped."""

    total: int
    val_interval: int
    log_interval: int
    skips: SkipConfig


def training_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Autocast type of a training run, None = float32.

    Raises:
        ConfigError: fp16 was asked for and the device is a CPU.
    """
    dtype = resolve_precision(precision, device)
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU, which scales the loss; on a CPU use bf16 or fp32")
    return dtype


def check_splits(
    splits: Sequence[tuple[str, Split, LabelTable]], work_dir: Path, workers: int, launch: Launch
) -> None:
    """Refuse labeled splits, given with a name, that have errors; clean ones are remembered.

    Splits that are read by one table are one dataset: their masks must be coded alike.

    Raises:
        DataError: naming the first problems.
    """
    with main_process_first(launch) as first:
        if first:
            datasets: dict[LabelTable, MaskSurvey] = {}
            for name, split, table in splits:
                logger.info("checking the %s images of %s", name, split.path)
                survey = require_clean(split, table, work_dir / "checks", max(workers, 1))
                datasets.setdefault(table, MaskSurvey()).update(survey)
            for survey in datasets.values():
                require_readable_together(survey.refused())


def common_hooks(
    cfg: Section, steps: Steps, checkpoints: CheckpointHook, pictures: Hook, launch: Launch
) -> tuple[SafetyHook, list[Hook]]:
    """The hooks of every run; the first is the one that says whether a signal stopped it."""
    skipped = SkippedSteps(steps.skips.max_skipped_in_a_row, steps.skips.max_skipped_share)
    safety = SafetyHook(skipped, delay=0 if launch.device.type == "cpu" else 1)
    return safety, [
        safety,
        ConfigFileHook(cfg),
        ThroughputHook(launch.world_size, steps.log_interval, launch.device),
        checkpoints,
        SharedBuffersHook(),
        SummaryHook(),
        pictures,
        ProgressHook(safety),
    ]


def run_training(
    launch: Launch,
    work_dir: Path,
    name: str,
    model: TaskModel,
    data: TrainingData,
    val_loader: DataLoader,
    metrics: Sequence[BaseMetric],
    optim: OptimConfig,
    schedule: list[dict[str, Any]],
    steps: Steps,
    hooks: tuple[SafetyHook, list[Hook]],
    *,
    seed: int,
    resume_from: Path | None,
    **distributed: bool,
) -> int:
    """Train; returns the exit code: 0 when done, 128 + n when signal n stopped it.

    Args:
        launch: device and processes.
        work_dir: output folder.
        name: of the run, for TensorBoard.
        model: with its initial weights.
        data: training images.
        val_loader: validation images.
        metrics: of the validation.
        optim: settings of AdamW.
        schedule: of the learning rate, see :mod:`s5.training.optim`.
        steps: length and intervals.
        hooks: as of :func:`common_hooks`, with more.
        seed: of everything random.
        resume_from: checkpoint to go on from.
        distributed: ``sync_bn`` and ``find_unused_parameters``, see :class:`~s5.training.runner.S5Runner`.
    """
    groups = param_groups(model.network, optim.lr, optim.weight_decay, optim.layer_decay, optim.exempt_norms)
    batch = data.sampler.batch_size * launch.world_size
    logger.info("%s on %s, precision %s", name, launch.device, model.dtype or "float32")
    logger.info("learning rate %g, %d images a step (%d processes)", optim.lr, batch, launch.world_size)
    safety, custom_hooks = hooks
    if launch.device.type == "cpu":
        keep_freed_memory()
    runner = S5Runner(
        launch=launch,
        model=model,
        work_dir=str(work_dir),
        train_dataloader=data.loader,
        val_dataloader=val_loader,
        train_cfg={"by_epoch": False, "max_iters": steps.total, "val_interval": steps.val_interval},
        val_cfg={},
        val_evaluator=Evaluator(metrics),
        optim_wrapper=build_optim_wrapper(groups, optim.lr, optim.betas, model.dtype, optim.clip_grad),
        param_scheduler=schedule,
        custom_hooks=custom_hooks,
        **log_options(steps.log_interval),
        visualizer=build_visualizer(work_dir, name),
        load_from=None if resume_from is None else str(resume_from),
        resume=resume_from is not None,
        randomness={"seed": seed},
        cfg=distributed,
    )
    with safety:
        runner.train()
    stop_workers(data.loader, val_loader)
    if safety.stopped_by is not None:
        logger.info("stopped by %s at iteration %d; go on with --resume", safety.stopped_by.name, runner.iter)
        return 128 + safety.stopped_by
    logger.info("done; weights, log and pictures are in %s", work_dir)
    return 0


def check_codings(splits: Sequence[tuple[Split, LabelTable]], launch: Launch) -> None:
    """Refuse splits of which some masks cannot be read beside the others, before they are scored.

    Raises:
        DataError: naming the first of them.
    """
    with main_process_first(launch) as first:
        if first:
            for split, table in splits:
                masks = [sample.mask for sample in split if sample.mask is not None]
                require_readable_together(refuse_together(masks, table))


def run_validation(
    launch: Launch,
    work_dir: Path,
    name: str,
    model: TaskModel,
    loader: DataLoader,
    metrics: Sequence[BaseMetric],
    hooks: Sequence[Hook],
    log_interval: int,
) -> dict[str, float]:
    """Predict the validation images and let metrics and hooks see them; returns all scores."""
    runner = S5Runner(
        launch=launch,
        model=model,
        work_dir=str(work_dir),
        val_dataloader=loader,
        val_cfg={},
        val_evaluator=Evaluator(metrics),
        custom_hooks=list(hooks),
        **log_options(log_interval),
        visualizer=build_visualizer(work_dir, name),
    )
    scores = runner.val()
    stop_workers(loader)
    return scores
