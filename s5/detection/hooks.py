"""Pictures of detections in validation or test images, drawn at every validation."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.oriented.drawing import draw_polygons, draw_truth
from s5.data.oriented.geometry import to_polygons
from s5.training.hooks.pictures import write_sheet

MIN_SCORE = 0.3  # of the detections drawn


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
                write_sheet(runner, f"{self.part}_{task}", rows)
                self._rows[task] = []


def _detections(
    pixels: np.ndarray, found: Mapping[str, torch.Tensor], scale: float, classes: Sequence[str]
) -> np.ndarray:
    boxes, scores, labels = (found[key].cpu().numpy() for key in ("bboxes", "scores", "labels"))
    shown = scores >= MIN_SCORE
    return draw_polygons(pixels, to_polygons(boxes[shown]) * scale, labels[shown], classes, scores[shown])
