"""The configuration of oriented detection, the Python files below `Object_Detection/configs`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from s5.data.datasets import CLASS_LISTS as CLASSES
from s5.detection.network import Settings
from s5.ranges import NonNegative, NonNegativeFloat, Positive, PositiveFloat, ShareBelowOne
from s5.training.command import check_task_names
from s5.training.config import NORM_EPS, EpochScheduleConfig, OptimConfig, RunConfig, Section


class ObjectsConfig(Section):
    """Images and their objects; paths are relative to `data_root` unless absolute.

    `images` and `annotations` are a folder each, or several; annotations are DOTA text files, or DIOR-R's
    XML files, of the images' names. `names` is a file that lists the images to take, or several; all by
    default.
    """

    images: Path | tuple[Path, ...]
    annotations: Path | tuple[Path, ...]
    names: Path | tuple[Path, ...] | None = None


class DetTestConfig(Section):
    """Test images, as a rule without annotations; paths as in :class:`ObjectsConfig`.

    With `windows`, the images are windows of larger ones, named as `python -m s5.data.prepare dota` names
    them: their detections are merged.
    """

    images: Path | tuple[Path, ...]
    annotations: Path | tuple[Path, ...] | None = None
    names: Path | tuple[Path, ...] | None = None
    windows: bool = False


class DetTaskConfig(Section):
    """One dataset.

    With `whole`, the validation images are windows, and this is the folder with the labels of the images
    that they were cut from: scores are then those of the whole images, with detections merged. `test` are
    images to submit to a server; training does not read them.

    `train_difficult` trains on difficult objects as on others, as mmrotate does; scores leave them out in
    any case. Objects whose upright box has a side below `ignore_below` pixels at the input are neither
    objects nor background in training. `leave_out` names classes that the annotations have and the task has
    not.
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
                f"leave_out has {', '.join(both)}, which classes has as well; take them out of one of the two"
            )
        return self


@dataclass(frozen=True)
class DetModelConfig(Settings):
    """The detector: settings of Oriented R-CNN, and of the backbone."""

    expert_channels: NonNegative = 256
    drop_path: ShareBelowOne = 0.1
    norm_eps: PositiveFloat = NORM_EPS
    activation_checkpointing: bool = False
    compile: bool = False

    def settings(self) -> Settings:
        """What is chosen of Oriented R-CNN."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})


class DetOptimConfig(OptimConfig):
    """AdamW with the published values of detection."""

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
    """Everything one detection run depends on."""

    data_root: Path
    backbone: str = "vit_b_moe"
    load_from: Path | None = None
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
                f"schedule.milestones {list(self.schedule.milestones)} must rise and lie below "
                f"schedule.epochs {self.schedule.epochs}"
            )
        return self
