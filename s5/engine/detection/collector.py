"""Collects what a detector finds, to be written."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from s5.data.oriented.detections import Detections
from s5.data.oriented.merge import NMS_THRESHOLD, merge_windows
from s5.engine.detection.metric import detections_of, gather


class DetectionCollector(BaseMetric):
    """Collects the detections of one task's images in the main process; gives no scores.

    Args:
        classes: names of the classes, by label.
        task: whose images are taken.
        merge: put windows of larger images together.
        nms: IoU above which detections of overlapping windows are one, for ``merge``.

    Attributes:
        detections: of the last evaluation, by name of the image; empty in other processes.
    """

    default_prefix = ""  # mmengine asks for one

    def __init__(self, classes: Sequence[str], task: str, merge: bool, nms: float = NMS_THRESHOLD) -> None:
        super().__init__()
        self.classes, self.task, self.merge, self.nms = tuple(classes), task, merge, nms
        self.detections: dict[str, Detections] = {}
        self._found: dict[str, Detections] = {}

    def process(self, data_batch: Mapping[str, Sequence], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the detections of the task's images in a batch, see :class:`DetectionMetric`."""
        for name, task, sample in zip(data_batch["name"], data_batch["task"], data_samples, strict=True):
            if task == self.task:
                self._found[name] = detections_of(sample["pred_instances"])

    def evaluate(self, size: int) -> dict[str, float]:
        """Bring the detections of all processes together; there are no scores."""
        found = gather(self._found) or {}
        self._found = {}
        return self.compute_metrics(found)

    def compute_metrics(self, results: dict[str, Detections]) -> dict[str, float]:
        """Keep the detections, merged or as they are, in the order of the names."""
        self.detections = (
            merge_windows(results.items(), self.nms)
            if self.merge
            else {name: results[name] for name in sorted(results)}
        )
        return {}
