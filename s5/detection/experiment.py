"""The oriented detection experiment: a detector with a head, and optionally an expert, per dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from s5.backbones import file_name
from s5.data.labels import get_classes
from s5.data.loaders import TrainingData
from s5.data.oriented.drawing import draw_polygons, draw_truth
from s5.data.oriented.geometry import to_polygons
from s5.data.oriented.sources import (
    OrientedImages,
    OrientedValidation,
    objects_loader,
    objects_validation_loader,
)
from s5.detection.config import DetConfig, DetTestConfig, ObjectsConfig
from s5.detection.metric import DetectionMetric, build_metrics
from s5.detection.network import DetectionModel, with_heads
from s5.detection.trained import DetectionSpec
from s5.launch import ALONE, Launch
from s5.training.command import expert_channels, naming
from s5.training.experiment import Experiment, Steps, epoch_steps, steps_of_epochs
from s5.training.hooks import WeightFiles
from s5.training.hooks.pictures import write_sheet
from s5.training.model import configured_backbone
from s5.training.optim import step_schedule

BEST = "mAP50"
MIN_SCORE = 0.3  # of the detections drawn
Classes = dict[str, tuple[str, ...]]


class DetectionExperiment(Experiment[DetConfig, DetectionModel]):
    """A run on all tasks of the configuration.

    Attributes:
        classes: Names of the classes of each task.
    """

    def __init__(
        self, cfg: DetConfig, launch: Launch = ALONE, work_dir: Path = Path(), name: str = ""
    ) -> None:
        super().__init__(cfg, launch, work_dir, name or f"det_{file_name(cfg.backbone)}")
        self.classes = build_classes(cfg)

    def new_model(self) -> DetectionModel:
        """Build the detector and its mmengine model."""
        cfg = self.cfg
        counts = {name: len(names) for name, names in self.classes.items()}
        channels = expert_channels(cfg.backbone, cfg.model.expert_channels)
        backbone = configured_backbone(cfg.backbone, tuple(counts), cfg.size, cfg.model, channels, "size")
        detector = with_heads(backbone, counts, cfg.model.settings())
        weights = {name: task.weight for name, task in cfg.tasks.items()}
        return DetectionModel(detector, self.dtype(), weights)

    def build_training_data(self) -> TrainingData:
        """Batches with the training images of all tasks."""
        cfg = self.cfg
        sources = [_training_images(cfg, name, names) for name, names in self.classes.items()]
        sizes = [task.batch_size for task in cfg.tasks.values()]
        meta = {"settings": asdict(cfg.model.settings())}
        return objects_loader(sources, sizes, cfg.seed, self.launch, cfg.workers, meta)

    def build_val_loader(self, part: str = "val") -> DataLoader:
        """The validation images of all tasks for this process; with `part` "test", the test images."""
        parts = [_validation_images(self.cfg, name, names, part) for name, names in self.classes.items()]
        return objects_validation_loader(parts, self.launch, self.cfg.workers)

    def build_metrics(self) -> list[DetectionMetric]:
        """Scores of every task, named `<task>/mAP50` ..."""
        return build_metrics(self.cfg, self.classes, self.val_loader)

    def steps(self) -> Steps:
        """Length and intervals, configured in epochs."""
        return steps_of_epochs(self.cfg.schedule, self.data)

    def lr_schedule(self) -> list[dict[str, Any]]:
        """Multiply the learning rate by `gamma` at the milestones."""
        schedule = self.cfg.schedule
        milestones = [epoch * epoch_steps(schedule, self.data) for epoch in schedule.milestones]
        return step_schedule(milestones, schedule.gamma, self.cfg.optim.warmup_iters)

    def weight_files(self) -> WeightFiles:
        """A file named `<backbone>_det.pth`."""
        return WeightFiles(f"{file_name(self.cfg.backbone)}_det.pth")

    def weights_meta(self) -> dict[str, Any]:
        """Metadata of the weight files, sufficient to rebuild the model and predict with it."""
        spec = DetectionSpec.from_config(self.cfg)
        return replace(spec, normalization=self.model.normalization).meta()

    def best_scores(self) -> Mapping[str, list[str]]:
        """The mean mAP50 over all tasks and, with several tasks, that of each one."""
        scores = {task: [f"{task}/{BEST}"] for task in self.classes}
        best = {"best": [score for part in scores.values() for score in part]}
        if len(scores) > 1:
            best |= {f"best_{task}": score for task, score in scores.items()}
        return best

    def pictures(self) -> Hook:
        """Images with ground truth and detections."""
        return BoxPicturesHook(self.classes)

    @property
    def find_unused_parameters(self) -> bool:
        """Whether DistributedDataParallel looks for parameters without gradient, as configured."""
        return self.cfg.find_unused_parameters


def build_classes(cfg: DetConfig) -> Classes:
    """Return the class names of each task.

    Raises:
        DataError: The name of a class list is unknown.
    """
    return {name: get_classes(task.classes) for name, task in cfg.tasks.items()}


def _training_images(cfg: DetConfig, name: str, classes: tuple[str, ...]) -> OrientedImages:
    task = cfg.tasks[name]
    with naming(f"tasks.{name}.train"):
        return OrientedImages(
            **_files(cfg.data_root, task.train),
            classes=classes,
            size=cfg.size,
            flip=task.flip,
            keep_empty=not task.skip_empty,
            train_difficult=task.train_difficult,
            leave_out=task.leave_out,
            ignore_below=task.ignore_below,
            name=name,
        )


def _validation_images(cfg: DetConfig, name: str, classes: tuple[str, ...], part: str) -> OrientedValidation:
    task = cfg.tasks[name]
    with naming(f"tasks.{name}.{part}"):
        return OrientedValidation(
            **_files(cfg.data_root, getattr(task, part)),
            classes=classes,
            task=name,
            size=cfg.size,
            leave_out=task.leave_out,
        )


def _files(root: Path, objects: ObjectsConfig | DetTestConfig) -> dict[str, Any]:
    def below(folders: Path | tuple[Path, ...]) -> list[Path]:
        return [root / folder for folder in (folders if isinstance(folders, tuple) else (folders,))]

    return {
        "images": below(objects.images),
        "annotations": None if objects.annotations is None else below(objects.annotations),
        "split": None if objects.names is None else below(objects.names),
    }


class BoxPicturesHook(Hook):
    """Draws ground truth (white) and detections of the first validation images of every task.

    The contact sheets go to `work_dir/pictures/<part>_<task>_<iter>.jpg` and TensorBoard.

    Args:
        classes: Names of the classes of each task.
        count: Rows of a sheet.
        part: Part of the data that the images are from, "val" or "test".
    """

    priority = "LOW"

    def __init__(self, classes: Mapping[str, Sequence[str]], count: int = 4, part: str = "val") -> None:
        self.classes = classes
        self.part = part
        self.count = count
        self._rows: dict[str, list[list[np.ndarray]]] = {task: [] for task in classes}

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        """Collect the first images."""
        if runner.rank != 0 or data_batch is None:
            return
        parts = (data_batch[key] for key in ("task", "images", "shapes", "scales", "objects"))
        for task, image, (height, width), scale, objects, found in zip(*parts, outputs or [], strict=True):
            if len(self._rows[task]) < self.count:
                pixels = image[:, :height, :width].permute(1, 2, 0).numpy()
                drawn = _detections(pixels, found["pred_instances"], scale, self.classes[task])
                self._rows[task].append([draw_truth(pixels, objects.polygons * scale), drawn])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the sheets."""
        for task, rows in self._rows.items():
            if rows:
                write_sheet(runner, f"{self.part}_{task}", rows, ("truth", "detections"))
                self._rows[task] = []


def _detections(
    pixels: np.ndarray, found: Mapping[str, torch.Tensor], scale: float, classes: Sequence[str]
) -> np.ndarray:
    boxes, scores, labels = (found[key].cpu().numpy() for key in ("bboxes", "scores", "labels"))
    shown = scores >= MIN_SCORE
    return draw_polygons(pixels, to_polygons(boxes[shown]) * scale, labels[shown], classes, scores[shown])
