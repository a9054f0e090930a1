"""Pictures of predictions on validation images, drawn at every validation."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.image_io import write_image
from s5.data.label_table import LabelTable

CELL = 320  # maximum side of a picture in a contact sheet, pixels
GAP = 4  # pixels between pictures


class PicturesHook(Hook):
    """Writes image, ground truth and prediction of the first validation images of every task.

    The contact sheets go to TensorBoard and to `work_dir/pictures/val_<iter>.jpg`, or
    `val_<task>_<iter>.jpg` with several tasks.

    Args:
        tables: Label table of each task.
        count: Rows of a sheet.
    """

    priority = "LOW"

    def __init__(self, tables: Mapping[str, LabelTable], count: int = 4) -> None:
        self.tables = tables
        self.count = count
        self._rows: dict[str, list[list[np.ndarray]]] = {task: [] for task in tables}

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        """Collect the first images."""
        if runner.rank != 0 or data_batch is None:
            return
        for task, image, label, prediction in zip(
            data_batch["tasks"], data_batch["images"], data_batch["labels"], outputs or [], strict=True
        ):
            if len(self._rows[task]) < self.count:
                # Shrunk immediately, because full-size images of all tasks may not fit in memory.
                photo = _fit(image.permute(1, 2, 0).contiguous().numpy())
                ids = (_fit(x.numpy().astype(np.uint8), nearest=True) for x in (label, prediction.cpu()))
                self._rows[task].append([photo, *(self.tables[task].colorize(x) for x in ids)])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the sheets."""
        for task, rows in self._rows.items():
            if rows:
                write_sheet(runner, "val" if len(self.tables) == 1 else f"val_{task}", rows)
                self._rows[task] = []


def colored(train_ids: torch.Tensor, table: LabelTable) -> np.ndarray:
    """Render train ids (H, W) in the colours of their label table."""
    return table.colorize(train_ids.numpy().astype(np.uint8))


def write_sheet(runner: Runner, name: str, rows: list[list[np.ndarray]]) -> None:
    """Write a contact sheet to the work folder and TensorBoard."""
    sheet = contact_sheet(rows)
    write_image(Path(runner.work_dir) / "pictures" / f"{name}_{runner.iter:06d}.jpg", sheet)
    runner.visualizer.add_image(name, sheet, step=runner.iter)


def contact_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange pictures (H, W, 3) of any size in rows on a white background, each shrunk to fit a cell."""
    cells = [[_fit(picture) for picture in row] for row in rows]
    height = max(cell.shape[0] for row in cells for cell in row) + GAP
    width = max(cell.shape[1] for row in cells for cell in row) + GAP
    sheet = np.full((height * len(cells), width * max(map(len, cells)), 3), 255, np.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            sheet[i * height : i * height + cell.shape[0], j * width : j * width + cell.shape[1]] = cell
    return sheet


def _fit(picture: np.ndarray, nearest: bool = False) -> np.ndarray:
    """Shrink to fit a cell; `nearest` is for class ids, which must not be interpolated."""
    factor = CELL / max(picture.shape[:2])
    if factor >= 1:
        return picture
    interpolation = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=interpolation)
