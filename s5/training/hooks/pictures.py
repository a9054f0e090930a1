"""Pictures of predictions on validation images, drawn at every validation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.image_io import write_image
from s5.data.label_table import RGB, LabelTable, spare_color
from s5.data.oriented.drawing import draw_legend

CELL = 320  # maximum side of a picture in a contact sheet, pixels
GAP = 4  # pixels between pictures
TITLE_HEIGHT, TITLE_SIZE, TITLE_COLOR = 24, 0.45, (0, 0, 0)


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
                table = self.tables[task]
                self._rows[task].append([photo, *(table.colorize(x, ignored_color(table)) for x in ids)])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the sheets."""
        for task, rows in self._rows.items():
            if rows:
                name = "val" if len(self.tables) == 1 else f"val_{task}"
                entries = legend(self.tables[task], "no label")
                write_sheet(runner, name, rows, ("image", "truth", "prediction"), entries)
                self._rows[task] = []


def colored(train_ids: torch.Tensor, table: LabelTable) -> np.ndarray:
    """Render train ids (H, W) in the colours of their label table, and ignored pixels in `ignored_color`."""
    return table.colorize(train_ids.numpy().astype(np.uint8), ignored_color(table))


def ignored_color(table: LabelTable) -> RGB:
    """Black, or a colour far from all classes where one of them is black (as a background is)."""
    return spare_color(table.palette) if (0, 0, 0) in table.palette else (0, 0, 0)


def rgb(image: torch.Tensor) -> np.ndarray:
    """Convert an image (3, H, W) in [0, 1] to (H, W, 3) uint8."""
    return (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()


def legend(table: LabelTable, ignored: str) -> list[tuple[str, RGB]]:
    """Names and colours of the classes and of the ignored pixels, for the legend of a sheet."""
    return [*zip(table.classes, table.palette, strict=True), (ignored, ignored_color(table))]


def write_sheet(
    runner: Runner,
    name: str,
    rows: list[list[np.ndarray]],
    titles: Sequence[str],
    entries: Sequence[tuple[str, RGB]] = (),
    step: int | None = None,
) -> None:
    """Write a contact sheet to the work folder and TensorBoard; the default step is the runner's."""
    sheet, step = contact_sheet(rows, titles, entries), runner.iter if step is None else step
    write_image(Path(runner.work_dir) / "pictures" / f"{name}_{step:06d}.jpg", sheet)
    runner.visualizer.add_image(name, sheet, step=step)


def contact_sheet(
    rows: list[list[np.ndarray]], titles: Sequence[str] = (), entries: Sequence[tuple[str, RGB]] = ()
) -> np.ndarray:
    """Arrange pictures in rows on a white background.

    Args:
        rows: Pictures (H, W, 3) of any size; each is shrunk to fit a cell.
        titles: Title of each column.
        entries: Names and colours of the legend.
    """
    cells = [[_fit(picture) for picture in row] for row in rows]
    height = max(cell.shape[0] for row in cells for cell in row) + GAP
    width = max(cell.shape[1] for row in cells for cell in row) + GAP
    sheet = np.full((height * len(cells), width * max(map(len, cells)), 3), 255, np.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            sheet[i * height : i * height + cell.shape[0], j * width : j * width + cell.shape[1]] = cell
    parts = [sheet]
    if titles:
        parts.insert(0, _draw_titles(titles, width, sheet.shape[1]))
    if entries:
        parts.append(draw_legend(entries, sheet.shape[1], 1))
    return np.concatenate(parts)


def _draw_titles(titles: Sequence[str], cell: int, width: int) -> np.ndarray:
    """Draw a line of titles, each shrunk to the width of its column."""
    line = np.full((TITLE_HEIGHT, width, 3), 255, np.uint8)
    for i, title in enumerate(titles):
        length = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, TITLE_SIZE, 1)[0][0]
        size = TITLE_SIZE * min(1.0, max(cell - 2 * GAP, 1) / length)
        origin = (i * cell, TITLE_HEIGHT - 2 * GAP)
        cv2.putText(line, title, origin, cv2.FONT_HERSHEY_SIMPLEX, size, TITLE_COLOR, 1, cv2.LINE_AA)
    return line


def _fit(picture: np.ndarray, nearest: bool = False) -> np.ndarray:
    """Shrink to fit a cell; `nearest` is for class ids, which must not be interpolated."""
    factor = CELL / max(picture.shape[:2])
    if factor >= 1:
        return picture
    interpolation = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=interpolation)
