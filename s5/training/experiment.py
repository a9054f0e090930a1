"""Training runs of all trees: an :class:`Experiment` defines what differs, :func:`run` trains it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from s5.errors import ConfigError
from s5.launch import Launch, main_process_first
from s5.training.config import EpochScheduleConfig, RunConfig
from s5.training.guarded_step import SkippedSteps
from s5.training.hooks import (
    CheckpointHook,
    ConfigFileHook,
    DataStateHook,
    NormalizationHook,
    ProgressHook,
    SafetyHook,
    SharedBuffersHook,
    SummaryHook,
    ThroughputHook,
    WeightFiles,
)
from s5.training.hooks.progress import build_visualizer, log_options
from s5.training.model import TaskModel
from s5.training.optim import build_optim_wrapper, param_groups
from s5.training.runner import S5Runner

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=RunConfig)
Model = TypeVar("Model", bound=TaskModel)


@dataclass(frozen=True)
class Steps:
    """Length and intervals of a run in steps."""

    total: int
    val_interval: int
    checkpoint_interval: int


class Experiment(ABC, Generic[Config, Model]):
    """Definition of a training run for :func:`run`; each tree subclasses it.

    Call :meth:`build_data`, then :meth:`build_model`, then load initial weights, and only then :func:`run`.
    In this order, problems with the data are reported before a model is built.

    Args:
        cfg: The configuration.
        launch: Device and processes.
        work_dir: Output folder.
        name: Name of the run in the log and in TensorBoard.

    Attributes:
        data: Training images.
        val_loader: Validation images.
        metrics: Validation metrics.
        model: The model.
    """

    data: TrainingData
    val_loader: DataLoader
    metrics: Sequence[BaseMetric]
    model: Model

    def __init__(self, cfg: Config, launch: Launch, work_dir: Path, name: str) -> None:
        self.cfg, self.launch, self.work_dir, self.name = cfg, launch, work_dir, name

    def build_data(self) -> None:
        """Find the images of the run.

        Raises:
            DataError: Images or labels are missing or invalid, or there are too few for one global step.
            ConfigError: The configuration does not fit the data.
        """
        self.data = self.build_training_data()
        self.val_loader = self.build_val_loader()
        self.metrics = self.build_metrics()

    def build_model(self) -> Model:
        """Build the model with random weights that depend on the seed alone.

        Raises:
            ConfigError: The backbone is unknown, its experts are too wide, or fp16 is requested on a CPU.
        """
        torch.manual_seed(self.cfg.seed)
        self.model = self.new_model()
        return self.model

    @abstractmethod
    def new_model(self) -> Model:
        """Return a new model, see :meth:`build_model`."""

    @abstractmethod
    def build_training_data(self) -> TrainingData:
        """Return the training images of this process, see :meth:`build_data`."""

    @abstractmethod
    def build_val_loader(self) -> DataLoader:
        """Return the validation images of this process, see :meth:`build_data`."""

    @abstractmethod
    def build_metrics(self) -> Sequence[BaseMetric]:
        """Return the validation metrics."""

    def check_data(self) -> None:  # noqa: B027 - nothing by default
        """Read the labels of all images and reject invalid ones; a tree may leave this out.

        Raises:
            DataError: There are invalid labels; names the first problems.
        """

    @abstractmethod
    def steps(self) -> Steps:
        """Length and intervals of the run."""

    @abstractmethod
    def lr_schedule(self) -> list[dict[str, Any]]:
        """Learning-rate schedule, see :mod:`s5.training.optim`.

        Raises:
            ConfigError: The schedule does not fit the length of the run.
        """

    @abstractmethod
    def weight_files(self) -> WeightFiles:
        """Names of the weight files."""

    @abstractmethod
    def weights_meta(self) -> dict[str, Any]:
        """Metadata of the weight files, sufficient to rebuild the model and predict with it."""

    @abstractmethod
    def best_scores(self) -> Mapping[str, Sequence[str]]:
        """Scores that select the best weights, see :class:`~s5.training.hooks.CheckpointHook`."""

    @abstractmethod
    def pictures(self) -> Hook:
        """The hook that draws validation images."""

    def own_hooks(self) -> list[Hook]:
        """Hooks specific to this tree."""
        return []

    @property
    def max_unreadable(self) -> float:
        """Share of the unlabeled images that may be unreadable, 0 to 1."""
        return 0.0

    @property
    def find_unused_parameters(self) -> bool:
        """Whether DistributedDataParallel has to look for parameters without gradient."""
        return False

    def dtype(self) -> torch.dtype | None:
        """Autocast dtype for training; None is float32.

        Raises:
            ConfigError: fp16 is requested on a CPU.
        """
        dtype = resolve_precision(self.cfg.precision, self.launch.device)
        if dtype is torch.float16 and self.launch.device.type == "cpu":
            raise ConfigError("precision fp16 needs a GPU for loss scaling; on a CPU use bf16 or fp32")
        return dtype

    def synchronises_batch_norm(self) -> bool:
        """Whether batch norm uses the images of all processes, so that one image per process suffices."""
        launch = self.launch
        return self.cfg.sync_bn and launch.world_size > 1 and launch.device.type == "cuda"

    def hooks(self, safety: SafetyHook) -> list[Hook]:
        """All hooks of the run; :mod:`s5.training.hooks` lists them in execution order."""
        schedule, launch = self.cfg.schedule, self.launch
        checkpoints = CheckpointHook(
            self.steps().checkpoint_interval,
            schedule.keep_checkpoints,
            self.weight_files(),
            self.weights_meta,
            self.best_scores(),
        )
        return [
            safety,
            SharedBuffersHook(),
            NormalizationHook(),
            DataStateHook(self.data.sampler, self.data.unlabeled, self.max_unreadable),
            ConfigFileHook(self.cfg),
            ThroughputHook(launch.world_size, schedule.log_interval, launch.device),
            SummaryHook(),
            self.pictures(),
            checkpoints,
            ProgressHook(safety),
            *self.own_hooks(),
        ]


def epoch_steps(schedule: EpochScheduleConfig, data: TrainingData) -> int:
    """Number of steps in an epoch."""
    return schedule.steps_per_epoch or data.sampler.epoch_steps


def steps_of_epochs(schedule: EpochScheduleConfig, data: TrainingData) -> Steps:
    """Convert a schedule in epochs to steps."""
    counts = (schedule.epochs, schedule.val_interval, schedule.checkpoint_interval)
    return Steps(*(epochs * epoch_steps(schedule, data) for epochs in counts))


def run(experiment: Experiment, resume_from: Path | None = None) -> int:
    """Train and return the exit code: 0 when finished, 128 + n when stopped by signal n.

    Args:
        experiment: An experiment whose data and model are built and whose initial weights are loaded.
        resume_from: Checkpoint to resume from, see :mod:`s5.training.resume`.

    Raises:
        UserError: The data has errors, the checkpoint does not fit, or too many steps were skipped because
            of non-finite losses or gradients.
    """
    experiment.check_data()
    cfg, launch, model = experiment.cfg, experiment.launch, experiment.model
    optim, schedule, steps = cfg.optim, cfg.schedule, experiment.steps()
    batch = experiment.data.sampler.batch_size * launch.world_size
    logger.info("%s on %s, precision %s", experiment.name, launch.device, model.dtype or "float32")
    logger.info("learning rate %g, %d images a step (%d processes)", optim.lr, batch, launch.world_size)
    if launch.device.type == "cpu":
        keep_freed_memory()
    groups = param_groups(model.network, optim.lr, optim.weight_decay, optim.layer_decay, optim.exempt_norms)
    trained, total = (
        sum(weight.numel() for weight in weights)
        for weights in ((w for group in groups for w in group["params"]), model.network.parameters())
    )
    logger.info("trained parameters: %s of %s (%.1f %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
    skipped = SkippedSteps(schedule.max_skipped_in_a_row, schedule.max_skipped_share)
    safety = SafetyHook(skipped, delay=0 if launch.device.type == "cpu" else 1)
    runner = S5Runner(
        launch=launch,
        model=model,
        work_dir=str(experiment.work_dir),
        train_dataloader=experiment.data.loader,
        val_dataloader=experiment.val_loader,
        train_cfg={"max_iters": steps.total, "val_interval": steps.val_interval},
        val_cfg={},
        val_evaluator=Evaluator(experiment.metrics),
        optim_wrapper=build_optim_wrapper(groups, optim.lr, optim.betas, model.dtype, optim.clip_grad),
        param_scheduler=experiment.lr_schedule(),
        custom_hooks=experiment.hooks(safety),
        **log_options(schedule.log_interval),
        visualizer=build_visualizer(experiment.work_dir, experiment.name),
        load_from=None if resume_from is None else str(resume_from),
        resume=resume_from is not None,
        randomness={"seed": cfg.seed},
        cfg={"sync_bn": cfg.sync_bn, "find_unused_parameters": experiment.find_unused_parameters},
    )
    with safety:
        runner.train()
    stop_workers(experiment.data.loader, experiment.val_loader)
    if safety.stopped_by is not None:
        logger.info(
            "stopped by %s at iteration %d; continue with --resume", safety.stopped_by.name, runner.iter
        )
        return 128 + safety.stopped_by
    logger.info("done; weights, log and pictures are in %s", experiment.work_dir)
    return 0


def check_splits(
    splits: Sequence[tuple[str, Split, LabelTable]], work_dir: Path, workers: int, launch: Launch
) -> None:
    """Reject labeled splits with errors; results for clean ones are cached in `work_dir/checks`.

    Splits that share a label table belong to one dataset, so their masks must use the same encoding.

    Args:
        splits: Name, split and label table of each.
        work_dir: Output folder of the run.
        workers: Processes that read masks.
        launch: The processes of the run; only the main one reads.

    Raises:
        DataError: There are errors; names the first problems.
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


def check_codings(splits: Sequence[tuple[Split, LabelTable]], launch: Launch) -> None:
    """Before scoring, reject splits whose masks do not all use the same encoding.

    Raises:
        DataError: Some masks differ; names the first of them.
    """
    with main_process_first(launch) as first:
        if first:
            for split, table in splits:
                masks = [sample.mask for sample in split if sample.mask is not None]
                require_readable_together(refuse_together(masks, table))


def run_validation(
    model: TaskModel,
    loader: DataLoader,
    metrics: Sequence[BaseMetric],
    *,
    launch: Launch,
    work_dir: Path,
    name: str,
    hooks: Sequence[Hook],
    log_interval: int,
) -> dict[str, float]:
    """Predict the validation images, run the hooks on them, and return all scores.

    Args:
        model: The trained model.
        loader: The validation images.
        metrics: The scores to compute.
        launch: Device and processes.
        work_dir: Folder of logs and pictures.
        name: Name of the run in its logs.
        hooks: Hooks to run on the predictions.
        log_interval: Images between lines of the log.
    """
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
