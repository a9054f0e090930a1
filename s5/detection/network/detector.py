"""One detector for several datasets: a shared backbone, once per batch, and an Oriented R-CNN per task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from mmrotate.structures.bbox import RotatedBoxes
from torch import Tensor

from s5.backbones import Architecture, Backbone, Counts, create_backbone
from s5.detection.network.oriented_rcnn import OrientedRCNN, Settings
from s5.ops.photometric import to_unit
from s5.training.model import MultiTaskNetwork, TaskModel


class MultiTaskDetector(MultiTaskNetwork):
    """Oriented R-CNN for any number of tasks on one backbone; with one task, plain Oriented R-CNN.

    The backbone runs once on all images; FPN, RPN and RoI head of a task run on its slice.
    """

    def loss(self, images: Tensor, samples: SampleList, counts: Counts) -> dict[str, dict[str, Tensor]]:
        """Losses by part of every task in the batch.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            samples: Their ground truth.
            counts: Images of each task, in the order of the batch.
        """
        parts = self._parts(images, samples, counts)
        return {task: head.loss(features, own) for task, head, features, own in parts}

    def predict(self, images: Tensor, samples: SampleList, counts: Counts) -> list[InstanceData]:
        """Detections of every image: rotated boxes in pixels of the image file, scores, labels.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            samples: What is known of them (shapes, scale).
            counts: Images of each task, in the order of the batch.
        """
        parts = self._parts(images, samples, counts)
        return [found for _, head, features, own in parts for found in head.predict(features, own)]

    def predict_all(
        self, images: Tensor, samples: SampleList, tasks: Sequence[str] | None = None
    ) -> dict[str, list[InstanceData]]:
        """Detections of the same images for several tasks, in pixels of the image files.

        Args:
            images: (B, 3, H, W), normalised.
            samples: Their shapes and scales.
            tasks: Names of the tasks, by default all; only their heads and experts run.
        """
        heads = {task: cast(OrientedRCNN, head) for task, head in self.heads.items()}
        return {
            task: heads[task].predict(heads[task].neck(maps), samples)
            for task, maps in self.features_of_all(images, tasks).items()
        }

    def _parts(
        self, images: Tensor, samples: SampleList, counts: Counts
    ) -> Iterator[tuple[str, OrientedRCNN, tuple[Tensor, ...], SampleList]]:
        """Task, head, the neck's feature maps and the samples of each task in the batch."""
        first = 0
        for task, maps in self.features(images, counts).items():
            head = cast(OrientedRCNN, self.heads[task])
            yield task, head, head.neck(maps), samples[first : first + counts[task]]
            first += counts[task]


def build_detector(
    backbone: str | Architecture,
    tasks: Mapping[str, int],
    img_size: int = 1024,
    *,
    expert_channels: int = 0,
    settings: Settings | None = None,
    **options: Any,
) -> MultiTaskDetector:
    """Build a backbone with an Oriented R-CNN per task, randomly initialised.

    Args:
        backbone: Name, see `s5.backbones.list_backbones`, or an `Architecture`.
        tasks: Number of classes by task.
        img_size: Image size in pixels that the backbone is built for.
        expert_channels: Task-specific channels of the backbone's FFNs; 0 gives a dense backbone.
        settings: Of Oriented R-CNN; the published ones if left out.
        options: More arguments of `s5.backbones.create_backbone`.
    """
    built = create_backbone(
        backbone, img_size, experts=tuple(tasks), expert_channels=expert_channels, **options
    )
    return with_heads(built, tasks, settings)


def with_heads(
    backbone: Backbone, tasks: Mapping[str, int], settings: Settings | None = None
) -> MultiTaskDetector:
    """A backbone with an Oriented R-CNN per task; arguments as of :func:`build_detector`."""
    heads = {name: build_head(backbone.out_channels, count, settings) for name, count in tasks.items()}
    return MultiTaskDetector(backbone, heads)


def build_head(
    in_channels: Sequence[int], num_classes: int, settings: Settings | None = None
) -> OrientedRCNN:
    """Neck, RPN and RoI head of a task on four feature maps of these channels, by default as published."""
    return OrientedRCNN(in_channels, num_classes, settings or Settings())


class DetectionModel(TaskModel):
    """mmengine model around a :class:`~s5.detection.network.detector.MultiTaskDetector`.

    Args:
        detector: The network.
        dtype: Autocast type of the matrix work; None is float32. Geometry and losses are float32 in any case.
        weights: Factor of each task in the loss; 1 if left out.
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
        self, images: Tensor, counts: Counts, mode: str = "predict", **batch: Any
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses or detections of a batch that is ordered by task.

        Args:
            images: (B, 3, S, S) uint8, padded at the right and bottom.
            counts: Images of each task, in the order of the batch.
            mode: `loss` or `predict`.
            batch: `shapes` (height, width) of the images without padding, `scales` from the image file to
                the input; for losses `boxes` (n, 5), `labels` (n) and `ignored` (m, 5) of each image;
                to predict, `valid` may say where the image files have data, see :func:`on_data`, None for
                everywhere.

        Returns:
            `loss`: `loss` and `loss_<task>_<part>`. `predict`: of each image `pred_instances` with
            `bboxes` (n, 5) in pixels of the image file, `scores` and `labels`.
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
        self,
        images: Tensor,
        shapes: Sequence[tuple[int, int]],
        scales: Sequence[float],
        tasks: Sequence[str] | None = None,
    ) -> dict[str, list[dict[str, Tensor]]]:
        """Detections of the same images for several tasks, from one pass of the network.

        Args:
            images: (B, 3, S, S) uint8, padded at the right and bottom.
            shapes: Height and width of the images without padding.
            scales: From the image file to the input.
            tasks: Names of the tasks, by default all.

        Returns:
            By task, of each image `bboxes` (n, 5) in pixels of the image file, `scores` and `labels`.
        """
        samples = self._samples(images, {"shapes": shapes, "scales": scales}, False)
        with self.autocast():
            found = self.detector.predict_all(self._prepare(to_unit(images)), samples, tasks)
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
        found: `bboxes` (n, 5) in pixels of the image, and other tensors of n rows.
        valid: Bool (H, W), false where the image has no data; of a centre outside, the nearest pixel decides.
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
