"""The configuration of S4P pre-training, ``S4_Pretrain/configs/pretrain.yaml``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from s5.data.augmentation import StrongAugmentation
from s5.training.config import (
    InferenceConfig,
    ModelConfig,
    OptimConfig,
    PhotometricConfig,
    Positive,
    RunConfig,
    ScaleRange,
    Section,
    Share,
    SkipConfig,
)


class LabeledConfig(Section):
    """Labeled training images."""

    split: Path
    batch_size: Positive


class UnlabeledConfig(Section):
    """Unlabeled training images; ``batch_size: 0`` trains on the labeled ones alone."""

    split: Path
    batch_size: Annotated[int, Field(ge=0)]
    max_unreadable: Share = 0.01


class ValConfig(InferenceConfig):
    """Validation images and how they are predicted."""

    split: Path


class DataConfig(ScaleRange):
    """Images and how crops are taken; split paths are relative to ``data_root`` unless absolute."""

    labels: str | dict[str, Any] = "isaid"
    labeled: LabeledConfig
    unlabeled: UnlabeledConfig
    val: ValConfig
    crop: Positive = 512
    workers: Annotated[int, Field(ge=0)] = 8
    check: bool = True


class StrongConfig(PhotometricConfig):
    """Ranges of the strong views."""

    views: Positive = 1
    cutmix_p: Share = StrongAugmentation.cutmix_p

    def augmentation(self) -> StrongAugmentation:
        """The ranges without the number of views."""
        return StrongAugmentation(**self.model_dump(exclude={"views"}))


class CollapseConfig(Section):
    """When a warning says that the pseudo-labels have collapsed."""

    share: Share = 0.95  # of the confident pixels between two log lines; one class with more is a collapse
    missing_steps: Positive = 1_000  # without a confident pixel of a class that labels have


class FixMatchConfig(Section):
    """The semi-supervised objective; ``float32_labels`` predicts the pseudo-labels without autocast."""

    conf_thresh: Share = 0.95
    lambda_u: Annotated[float, Field(ge=0)] = 1.0
    pseudo_labels: Literal["current", "ema", "stored"] = "current"
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996
    float32_labels: bool = False
    strong: StrongConfig = StrongConfig()
    collapse: CollapseConfig = CollapseConfig()


class ScheduleConfig(SkipConfig):
    """Lengths and intervals in iterations."""

    total_iters: Positive = 120_000
    val_interval: Positive = 2_000
    checkpoint_interval: Positive = 1_000
    keep_checkpoints: Positive = 2
    log_interval: Positive = 200


class S4PConfig(RunConfig):
    """Everything one pre-training run depends on."""

    data_root: Path
    data: DataConfig
    init_paths: dict[str, dict[str, Path]] = {}
    model: ModelConfig = ModelConfig()
    fixmatch: FixMatchConfig = FixMatchConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _warmup_ends(self) -> "S4PConfig":
        if self.optim.warmup_iters >= self.schedule.total_iters:
            raise ValueError(
                f"optim.warmup_iters {self.optim.warmup_iters} must be smaller than schedule.total_iters "
                f"{self.schedule.total_iters}"
            )
        return self

    @model_validator(mode="after")
    def _blur_fits(self) -> "S4PConfig":
        self.fixmatch.strong.require_fit(self.data.crop, "fixmatch.strong", "data.crop")
        return self
