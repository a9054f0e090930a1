"""Configuration of oriented detection, the Python files in `Object_Detection/configs`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from s5.backbones import Finetune, Lora
from s5.data.datasets import CLASS_LISTS as CLASSES
from s5.detection.network import Settings
from s5.ranges import NonNegative, NonNegativeFloat, Positive, PositiveFloat, ShareBelowOne
from s5.training.command import check_task_names
from s5.training.config import (
    NORM_EPS,
    EpochScheduleConfig,
    NormalizationSetting,
    OptimConfig,
    RunConfig,
    Section,
)


class ObjectsConfig(Section):
    """Images and their objects; paths are relative to `data_root` unless absolute.

    `images` and `annotations` are one or several folders each; annotations are DOTA text files or DIOR-R XML
    files with the names of the images. `names` is one or several files that list the images to use; all by
    default.
    """

    images: Path | tuple[Path, ...]
    annotations: Path | tuple[Path, ...]
    names: Path | tuple[Path, ...] | None = None


class DetTestConfig(Section):
    """Test images, usually without annotations; paths as in :class:`ObjectsConfig`.

    With `windows`, the images are windows of larger ones, named as by `python -m s5.data.prepare dota`, and
    their detections are merged.
    """

    images: Path | tuple[Path, ...]
    annotations: Path | tuple[Path, ...] | None = None
    names: Path | tuple[Path, ...] | None = None
    windows: bool = False


class DetTaskConfig(Section):
    """One dataset.

    With `whole`, the validation images are windows; it is the folder with the labels of the full images they
    were cut from. Detections are then merged and scored on the full images. `test` are images for a
    submission to a server and are not used in training.

    `train_difficult` trains on difficult objects like on any others, as mmrotate does; scores always exclude
    them. Objects whose upright box has a side below `ignore_below` pixels at the input size are ignored in
    training. `leave_out` names classes in the annotations that the task does not have.
    """

    classes: str | tuple[str, ...]
    train: ObjectsConfig
    val: ObjectsConfig
    test: DetTestConfig | None = None
    batch_size: Positive = 2
    weight: PositiveFloat = 1.0
    flip: bool = True
    skip_empty: bool = False
    train_difficult: bool = False
    ignore_below: NonNegativeFloat = 0.0
    leave_out: tuple[str, ...] = ()
    whole: Path | None = None

    @model_validator(mode="after")
    def _left_out_classes_are_others(self) -> "DetTaskConfig":
        named = CLASSES.get(self.classes, ()) if isinstance(self.classes, str) else self.classes
        taken = {name.casefold() for name in named}
        if both := [name for name in self.leave_out if name.casefold() in taken]:
            raise ValueError(
                f"{', '.join(both)} in both classes and leave_out; remove them from one of the two"
            )
        return self


@dataclass(frozen=True)
class DetModelConfig(Settings):
    """The detector: settings of Oriented R-CNN and of the backbone."""

    expert_channels: NonNegative = 256
    drop_path: ShareBelowOne = 0.1
    norm_eps: PositiveFloat = NORM_EPS
    normalization: NormalizationSetting = None
    activation_checkpointing: bool = False
    compile: bool = False
    finetune: Finetune = "full"
    lora: Lora = Lora()

    def settings(self) -> Settings:
        """Return the settings of Oriented R-CNN."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})


class DetOptimConfig(OptimConfig):
    """AdamW with the published values for detection."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    warmup_iters: NonNegative = 500
    clip_grad: PositiveFloat | None = 35.0


class DetScheduleConfig(EpochScheduleConfig):
    """Length and intervals in epochs; at the milestones the learning rate is multiplied by `gamma`."""

    epochs: Positive = 12
    milestones: tuple[Positive, ...] = (8, 11)
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    val_interval: Positive = 1


class DetConfig(RunConfig):
    """Configuration of a detection run."""

    data_root: Path
    backbone: str = "vit_b_moe"
    load_from: str | None = None
    tasks: dict[str, DetTaskConfig]
    size: Positive = 1024
    workers: NonNegative = 8
    model: DetModelConfig = DetModelConfig()
    optim: DetOptimConfig = DetOptimConfig()
    schedule: DetScheduleConfig = DetScheduleConfig()
    find_unused_parameters: bool = False

    _names_usable = field_validator("tasks")(check_task_names)

    @model_validator(mode="after")
    def _milestones_within(self) -> "DetConfig":
        late = [epoch for epoch in self.schedule.milestones if epoch >= self.schedule.epochs]
        if late or list(self.schedule.milestones) != sorted(set(self.schedule.milestones)):
            raise ValueError(
                f"schedule.milestones {list(self.schedule.milestones)} must increase and be "
                f"smaller than schedule.epochs {self.schedule.epochs}"
            )
        return self
