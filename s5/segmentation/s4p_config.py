"""Configuration of S4P pre-training, `S4_Pretrain/configs/pretrain.yaml`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, field_validator, model_validator

from s5.data.augmentation import Photometric
from s5.ranges import NonNegative, Positive, Share
from s5.segmentation.methods import METHODS
from s5.segmentation.methods.fixmatch import FixMatchSettings
from s5.segmentation.windows import Inference
from s5.training.command import check_backbone
from s5.training.config import (
    CropsConfig,
    ModelConfig,
    OptimConfig,
    ScaleRange,
    ScheduleConfig,
    Section,
)


class LabeledConfig(Section):
    """Labeled training images."""

    split: Path
    batch_size: Positive


class UnlabeledConfig(Section):
    """Unlabeled training images; `batch_size: 0` trains on labeled images alone."""

    split: Path
    batch_size: NonNegative
    max_unreadable: Share = 0.01


@dataclass(frozen=True, kw_only=True)
class ValConfig(Inference):
    """Validation images and inference settings."""

    split: Path


class DataConfig(ScaleRange):
    """Images and geometry of the crops; split paths are relative to `data_root` unless absolute."""

    labels: str | dict[str, Any] = "isaid"
    labeled: LabeledConfig
    unlabeled: UnlabeledConfig
    val: ValConfig
    crop: Positive = 512
    workers: NonNegative = 8
    check: bool = True


class S4PScheduleConfig(ScheduleConfig):
    """Length and intervals in iterations."""

    total_iters: Positive = 120_000
    val_interval: Positive = 2_000
    checkpoint_interval: Positive = 1_000
    log_interval: Positive = 200


class S4PConfig(CropsConfig):
    """Configuration of a pre-training run.

    `method` chooses the semi-supervised method. Its settings are in the section named by the `section`
    attribute of its class.
    """

    data_root: Path
    data: DataConfig
    backbone: Annotated[str, AfterValidator(partial(check_backbone, experts=False))] = "vit_b"
    init: str = "mae"
    init_paths: dict[str, dict[str, Path]] = {}
    model: ModelConfig = ModelConfig()
    method: str = "fixmatch"
    fixmatch: FixMatchSettings = FixMatchSettings()
    optim: OptimConfig = OptimConfig()
    schedule: S4PScheduleConfig = S4PScheduleConfig()

    @field_validator("method")
    @classmethod
    def _method_known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"must be one of {', '.join(METHODS)}")
        return name

    @property
    def section(self) -> str:
        """Name of the section with the method's settings."""
        return METHODS[self.method].section

    @property
    def settings(self) -> FixMatchSettings:
        """Settings of the method."""
        return getattr(self, self.section)

    @model_validator(mode="after")
    def _warmup_ends(self) -> "S4PConfig":
        settings = self.settings
        starts = {"optim.warmup_iters": self.optim.warmup_iters}
        if self.data.unlabeled.batch_size > 0:  # labels alone have no use for the method's
            name = f"{self.section}.warmup_iters + ramp_iters"
            starts[name] = settings.warmup_iters + settings.ramp_iters
        for name, steps in starts.items():
            if steps >= self.schedule.total_iters:
                raise ValueError(
                    f"{name} {steps} must be smaller than schedule.total_iters {self.schedule.total_iters}"
                )
        return self

    def crop_and_changes(self) -> tuple[str, dict[str, Photometric]]:
        """Key of the crop size in pixels, and the photometric augmentations by key."""
        return "data.crop", {f"{self.section}.strong": self.settings.strong}
