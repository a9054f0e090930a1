"""Pictures of the views that FixMatch trains on, at every validation."""

from typing import Any, cast

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.labels import LabelTable
from s5.engine.hooks.pictures import colored, write_sheet
from s5.engine.runner import unwrap
from s5.models.fixmatch import FixMatch


class ViewsHook(Hook):
    """Writes weak view, strong view, confident pseudo-label and prediction on the strong view.

    To ``work_dir/pictures/unlabeled_<iter>.jpg`` and TensorBoard, of the newest training batch.

    Args:
        table: classes and colours.
        count: rows of a sheet.
    """

    priority = "LOW"

    def __init__(self, table: LabelTable, count: int = 4) -> None:
        self.table = table
        self.count = count
        self._batch: dict[str, Any] | None = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Remember the newest batch; it is drawn at the next validation."""
        self._batch = data_batch

    def before_val(self, runner: Runner) -> None:
        """Draw it."""
        if runner.rank != 0 or self._batch is None:
            return
        model = cast(FixMatch, unwrap(runner.model))
        views = {name: value.cpu() for name, value in model.preview(self._batch, self.count).items()}
        rows = [
            [_rgb(weak), _rgb(strong), colored(pseudo, self.table), colored(prediction, self.table)]
            for weak, strong, pseudo, prediction in zip(
                views["weak"], views["strong"], views["pseudo"], views["prediction"], strict=True
            )
        ]
        write_sheet(runner, "unlabeled", rows)


def _rgb(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
