"""Pictures of what the network sees and says, at every validation."""

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.image_io import write_image
from s5.data.labels import LabelTable
from s5.engine.runner import unwrap
from s5.models.fixmatch import FixMatch

CELL = 320  # largest side of one picture of a sheet, pixels
GAP = 4


class PicturesHook(Hook):
    """Writes contact sheets to ``work_dir/pictures`` and TensorBoard.

    ``unlabeled_<iter>.jpg``: weak view, strong view, confident pseudo-label, prediction on the strong view.
    ``val_<iter>.jpg``: image, ground truth, prediction of the first validation images.

    Args:
        table: classes and colours.
        count: rows of a sheet.
    """

    priority = "LOW"

    def __init__(self, table: LabelTable, count: int = 4) -> None:
        self.table = table
        self.count = count
        self._batch: dict[str, Any] | None = None
        self._rows: list[list[np.ndarray]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Remember the newest batch; it is drawn at the next validation."""
        self._batch = data_batch

    def before_val(self, runner: Runner) -> None:
        """Draw the views of the newest training batch."""
        if runner.rank != 0 or self._batch is None or "views" not in self._batch:
            return
        model = cast(FixMatch, unwrap(runner.model))
        views = {name: value.cpu() for name, value in model.preview(self._batch, self.count).items()}
        rows = [
            [_rgb(weak), _rgb(strong), self._color(pseudo), self._color(prediction)]
            for weak, strong, pseudo, prediction in zip(
                views["weak"], views["strong"], views["pseudo"], views["prediction"], strict=True
            )
        ]
        self._write(runner, "unlabeled", rows)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        """Collect the first validation images."""
        if runner.rank != 0 or data_batch is None:
            return
        for image, label, prediction in zip(
            data_batch["images"], data_batch["labels"], outputs or [], strict=True
        ):
            if len(self._rows) < self.count:
                photo = image.permute(1, 2, 0).contiguous().numpy()
                self._rows.append([photo, self._color(label), self._color(prediction.cpu())])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the sheet of validation images."""
        if self._rows:
            self._write(runner, "val", self._rows)
            self._rows = []

    def _color(self, train_ids: torch.Tensor) -> np.ndarray:
        return self.table.colorize(train_ids.numpy().astype(np.uint8))

    def _write(self, runner: Runner, name: str, rows: list[list[np.ndarray]]) -> None:
        sheet = contact_sheet(rows)
        write_image(Path(runner.work_dir) / "pictures" / f"{name}_{runner.iter:06d}.jpg", sheet)
        runner.visualizer.add_image(name, sheet, step=runner.iter)


def contact_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange pictures (H, W, 3) of any size in rows on white, each shrunk to the cell size."""
    cells = [[_fit(picture) for picture in row] for row in rows]
    height = max(cell.shape[0] for row in cells for cell in row) + GAP
    width = max(cell.shape[1] for row in cells for cell in row) + GAP
    sheet = np.full((height * len(cells), width * max(map(len, cells)), 3), 255, np.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            sheet[i * height : i * height + cell.shape[0], j * width : j * width + cell.shape[1]] = cell
    return sheet


def _fit(picture: np.ndarray) -> np.ndarray:
    factor = CELL / max(picture.shape[:2])
    if factor >= 1:
        return picture
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def _rgb(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
