"""Configuration of multi-dataset fine-tuning, `Semantic_Segmentation/configs/rsseg.yaml`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from s5.data.augmentation import Photometric
from s5.ranges import NonNegative, NonNegativeFloat, Positive, Share
from s5.segmentation.multi_dataset import TaskLoss
from s5.segmentation.windows import Inference
from s5.training.command import check_backbone, check_task_names
from s5.training.config import (
    CropsConfig,
    EpochScheduleConfig,
    ModelConfig,
    OptimConfig,
    ScaleRange,
    Section,
)


class FoldersConfig(Section):
    """A folder of images and a folder of masks with the same names."""

    images: Path
    masks: Path


class HoldOutConfig(Section):
    """A share of the training images held out for validation."""

    hold_out: Annotated[Share, Field(gt=0, lt=1)]


def _kind(value: object) -> str:
    """Tag of the way images are specified, so that an error message is about that alternative alone."""
    if isinstance(value, HoldOutConfig) or (isinstance(value, dict) and "hold_out" in value):
        return "hold_out"
    return "folders" if isinstance(value, dict | FoldersConfig) else "file"


Score = Literal["mIoU", "mF1", "mIoU_no_background", "mF1_no_background"]
SplitFile = Annotated[Path, Tag("file")]
Folders = Annotated[FoldersConfig, Tag("folders")]
HoldOut = Annotated[HoldOutConfig, Tag("hold_out")]


@dataclass(frozen=True)
class EvaluationConfig(Inference):
    """Inference settings of a task's validation images, and the score that selects its best weights."""

    metric: Score = "mIoU"


class TaskConfig(ScaleRange):
    """One dataset; paths are relative to `data_root` unless absolute.

    `photometric` has the published values by default; `false` disables it.
    """

    labels: str | dict[str, Any]
    train: Annotated[SplitFile | Folders, Discriminator(_kind)]
    val: Annotated[SplitFile | Folders | HoldOut, Discriminator(_kind)]
    batch_size: Positive = 12
    photometric: Photometric | None = Photometric()
    loss: TaskLoss = TaskLoss()
    start_epoch: NonNegative = 0
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("photometric", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the YAML holds
        """Accept `false` for none and `true` for the defaults, as for `flip` and `rotate`."""
        if value is False:
            return None
        return Photometric() if value is True else value

    @model_validator(mode="before")
    @classmethod
    def _has_validation(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the YAML holds
        if isinstance(values, dict) and values.get("val") is None:
            raise ValueError(
                "no validation images, which select the best weights: set val to a split file, to "
                "{images: FOLDER, masks: FOLDER}, or to {hold_out: 0.1} to hold out a tenth of train"
            )
        return values


class MDFModelConfig(ModelConfig):
    """The network; `expert_channels` matters for backbones named `*_moe` only, and 0 makes them dense."""

    expert_channels: NonNegative = 256


class MDFOptimConfig(OptimConfig):
    """AdamW with the published fine-tuning values."""

    weight_decay: NonNegativeFloat = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9


class MDFScheduleConfig(EpochScheduleConfig):
    """Length and intervals in epochs.

    `lr_per_epoch` updates the learning rate once per epoch instead of every step. The best weights of several
    tasks are selected by the mean of `best_metric` (None: the metric of each task) over `best_tasks` (None:
    all).
    """

    epochs: Positive = 100
    val_interval: Positive = 5
    lr_per_epoch: bool = False
    best_metric: Score | None = None
    best_tasks: tuple[str, ...] | None = None


class MDFConfig(CropsConfig):
    """Configuration of a fine-tuning run."""

    data_root: Path
    tasks: dict[str, TaskConfig]
    crop: Positive = 512
    workers: NonNegative = 8
    check: bool = True
    backbone: Annotated[str, AfterValidator(partial(check_backbone, experts=True))] = "vit_b_moe"
    init: str = "none"
    model: MDFModelConfig = MDFModelConfig()
    optim: MDFOptimConfig = MDFOptimConfig()
    schedule: MDFScheduleConfig = MDFScheduleConfig()

    _names_usable = field_validator("tasks")(check_task_names)

    @model_validator(mode="after")
    def _best_tasks_known(self) -> "MDFConfig":
        chosen = self.schedule.best_tasks
        unknown = [name for name in chosen or () if name not in self.tasks]
        if unknown or chosen == ():
            raise ValueError(
                f"schedule.best_tasks {list(chosen or ())}: must name some of the tasks "
                f"{', '.join(self.tasks)}, or be null for all"
            )
        return self

    def crop_and_changes(self) -> tuple[str, dict[str, Photometric]]:
        """Key of the crop size in pixels, and the photometric augmentations by key."""
        changes = {f"tasks.{name}.photometric": task.photometric for name, task in self.tasks.items()}
        return "crop", {key: change for key, change in changes.items() if change is not None}
