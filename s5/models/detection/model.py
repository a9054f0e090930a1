"""A detector with everything around it that training and evaluation share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmrotate.structures.bbox import RotatedBoxes
from torch import Tensor

from s5.models.detection.detector import MultiTaskDetector
from s5.models.inference import to_unit
from s5.models.task_model import TaskModel


class DetectionModel(TaskModel):
    """mmengine model around a :class:`~s5.models.detection.detector.MultiTaskDetector`.

    Args:
        detector: the network.
        dtype: autocast type of the matrix work; None is float32. Geometry and losses are float32 in any case.
        weights: factor of each task in the loss; 1 if left out.
    """

    def __init__(
        self,
        detector: MultiTaskDetector,
        dtype: torch.dtype | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(dtype)
        self.detector = detector
        self.weights = dict(weights or {})

    @property
    def network(self) -> MultiTaskDetector:
        """What is saved and loaded as weights."""
        return self.detector

    def forward(
        self, images: Tensor, counts: Sequence[int], mode: str = "predict", **batch: Any
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses or detections of a batch that is ordered by task.

        Args:
            images: (B, 3, S, S) uint8, padded at the right and bottom.
            counts: images of each task.
            mode: ``loss`` or ``predict``.
            batch: ``shapes`` (height, width) of the images without padding, ``scales`` from the image file to
                the input; for losses ``boxes`` (n, 5), ``labels`` (n) and ``ignored`` (m, 5) of each image;
                to predict, ``valid`` may say where the image files have data, see :func:`on_data`, None for
                everywhere.

        Returns:
            ``loss``: ``loss`` and ``loss_<task>_<part>``. ``predict``: of each image ``pred_instances`` with
            ``bboxes`` (n, 5) in pixels of the image file, ``scores`` and ``labels``.
        """
        with self.autocast():
            inputs = self._prepare(to_unit(images))
            if mode == "loss":
                return self._total(self.detector.loss(inputs, self._samples(images, batch, True), counts))
            found = self.detector.predict(inputs, self._samples(images, batch, False), counts)
        valid = batch.get("valid") or [None] * len(found)
        return [
            {"pred_instances": on_data(_as_dict(result), where)}
            for result, where in zip(found, valid, strict=True)
        ]

    def predict_all(
        self, images: Tensor, shapes: Sequence[tuple[int, int]], scales: Sequence[float]
    ) -> dict[str, list[dict[str, Tensor]]]:
        """Detections of the same images by every task, from one pass of the network.

        Args:
            images: (B, 3, S, S) uint8, padded at the right and bottom.
            shapes: height and width of the images without padding.
            scales: from the image file to the input.

        Returns:
            By task, of each image ``bboxes`` (n, 5) in pixels of the image file, ``scores`` and ``labels``.
        """
        samples = self._samples(images, {"shapes": shapes, "scales": scales}, False)
        with self.autocast():
            found = self.detector.predict_all(self._prepare(to_unit(images)), samples)
        return {task: [_as_dict(result) for result in results] for task, results in found.items()}

    def _total(self, losses: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        weighted = [
            self.weights.get(task, 1.0) * value for task, parts in losses.items() for value in parts.values()
        ]
        logged = {
            f"loss_{task}_{part}": value for task, parts in losses.items() for part, value in parts.items()
        }
        return {"loss": torch.stack(weighted).sum(), **logged}

    def _samples(self, images: Tensor, batch: dict[str, Any], labeled: bool) -> list[DetDataSample]:
        side = tuple(images.shape[-2:])
        samples = []
        for i, (shape, scale) in enumerate(zip(batch["shapes"], batch["scales"], strict=True)):
            meta = {"img_shape": shape, "pad_shape": side, "batch_input_shape": side}
            sample = DetDataSample(metainfo={**meta, "scale_factor": (scale, scale)})
            if labeled:
                sample.gt_instances = self._instances(batch["boxes"][i], batch["labels"][i])
                sample.ignored_instances = self._instances(batch["ignored"][i])
            samples.append(sample)
        return samples

    def _instances(self, boxes: Tensor, labels: Tensor | None = None) -> InstanceData:
        instances = InstanceData(bboxes=RotatedBoxes(boxes.to(self.device)))
        if labels is not None:
            instances.labels = labels.to(self.device)
        return instances


def on_data(found: dict[str, Tensor], valid: Tensor | None) -> dict[str, Tensor]:
    """Drop detections whose centre lies where the image has no data.

    Args:
        found: ``bboxes`` (n, 5) in pixels of the image, and other tensors of n rows.
        valid: bool (H, W), false where the image has no data; of a centre outside, the nearest pixel decides.
            None if it has data everywhere.
    """
    if valid is None:
        return found
    height, width = valid.shape
    columns, rows = found["bboxes"][:, :2].floor().long().unbind(1)
    kept = valid.to(columns.device)[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return {name: values[kept] for name, values in found.items()}


def _as_dict(found: InstanceData) -> dict[str, Tensor]:
    return {"bboxes": _tensor(found.bboxes), "scores": found.scores, "labels": found.labels}


def _tensor(boxes: RotatedBoxes | Tensor) -> Tensor:
    return boxes.tensor if isinstance(boxes, RotatedBoxes) else boxes
