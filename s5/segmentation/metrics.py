"""Segmentation scores from a confusion matrix, exact with any number of processes."""

import logging
from typing import Any

import torch
import torch.distributed as dist
from mmengine.evaluator import BaseMetric

from s5.data.label_table import IGNORE, LabelTable
from s5.ops.confusion import confusion_matrix, scores
from s5.training.reports import text_table

logger = logging.getLogger(__name__)

PER_CLASS = ("IoU", "F1", "Precision", "Recall")


class SegmentationMetric(BaseMetric):
    """Per-class scores, mIoU, mF1, mAcc and overall accuracy of one task, in percent.

    Images of other tasks are skipped. Ignored pixels are not counted; classes absent from both ground truth
    and prediction are excluded from means. Processes sum their integer confusion matrices, so the result does
    not depend on the distribution of the images.

    Args:
        table: Label table.
        task: Task whose images are counted.
        prefix: Scores are named `<prefix>/mIoU`, or `mIoU` without one.

    Attributes:
        matrix: Counts (K, K) of the last evaluation by all processes together, rows = ground truth.
    """

    default_prefix = ""  # mmengine warns without one

    def __init__(self, table: LabelTable, task: str, prefix: str = "") -> None:
        super().__init__(prefix=prefix)
        self.table = table
        self.task = task
        self.matrix = torch.zeros(table.num_classes, table.num_classes, dtype=torch.int64)
        self._matrix: torch.Tensor | None = None

    def process(self, data_batch: dict[str, Any], data_samples: list[torch.Tensor]) -> None:
        """Add a batch's images of the task to the confusion matrix: predictions (H, W) and `labels`."""
        for prediction, label, task in zip(
            data_samples, data_batch["labels"], data_batch["tasks"], strict=True
        ):
            if task != self.task:
                continue
            counts = confusion_matrix(prediction, label.to(prediction.device), self.table.num_classes, IGNORE)
            self._matrix = counts if self._matrix is None else self._matrix + counts

    def evaluate(self, size: int) -> dict[str, Any]:
        """Compute scores of the images that all processes have processed since the last call."""
        matrix = self._matrix
        self._matrix = None
        if matrix is None:  # more processes than images
            matrix = torch.zeros(self.table.num_classes, self.table.num_classes, dtype=torch.int64)
        if dist.is_initialized():
            if dist.get_backend() == "nccl":
                matrix = matrix.cuda()
            dist.all_reduce(matrix)
        self.matrix = matrix.cpu()
        prefix = f"{self.prefix}/" if self.prefix else ""
        return {prefix + name: value for name, value in self.compute_metrics(self.matrix).items()}

    def compute_metrics(self, results: torch.Tensor) -> dict[str, Any]:
        """Compute scores of a confusion matrix (K, K), rows = ground truth, and log those of the classes."""
        values: dict[str, Any] = {**scores(results, background=self.table.background)}
        logger.info("%s\n%s", self.task, self._format(values))
        metrics = {name: 100 * float(value) for name, value in values.items() if _is_scalar(value)}
        for measure in ("IoU", "F1"):
            for name, value in zip(self.table.classes, values[measure], strict=True):
                metrics[f"{measure}.{name}"] = 100 * float(value)
        return metrics

    def _format(self, values: dict[str, Any]) -> str:
        rows = [
            [name, *(f"{100 * float(values[key][i]):.2f}" for key in PER_CLASS)]
            for i, name in enumerate(self.table.classes)
        ]
        means = (f"{k} {100 * float(v):.2f}" for k, v in values.items() if _is_scalar(v))
        return f"{text_table(['class', *PER_CLASS], rows)}\n{'  '.join(means)}"


def _is_scalar(value: object) -> bool:
    return not isinstance(value, list)
