"""One detector for several datasets: a backbone, run once per batch, and an Oriented R-CNN per task."""

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
        """Compute the losses of every task in the batch, by name.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            samples: Ground truth of the images.
            counts: Number of images of each task, in the order of the batch.
        """
        parts = self._parts(images, samples, counts)
        return {task: head.loss(features, own) for task, head, features, own in parts}

    def predict(self, images: Tensor, samples: SampleList, counts: Counts) -> list[InstanceData]:
        """Predict rotated boxes in pixels of the image file, scores and labels of every image.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            samples: Their shapes and scales.
            counts: Number of images of each task, in the order of the batch.
        """
        parts = self._parts(images, samples, counts)
        return [result for _, head, features, own in parts for result in head.predict(features, own)]

    def predict_all(
        self, images: Tensor, samples: SampleList, tasks: Sequence[str] | None = None
    ) -> dict[str, list[InstanceData]]:
        """Predict the same images for several tasks, in pixels of the image files.

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
        """Yield name, head, the neck's feature maps and samples of each task in the batch."""
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
        settings: Settings of Oriented R-CNN; the published ones by default.
        options: Further arguments of `s5.backbones.create_backbone`.
    """
    built = create_backbone(
        backbone, img_size, experts=tuple(tasks), expert_channels=expert_channels, **options
    )
    return with_heads(built, tasks, settings)


def with_heads(
    backbone: Backbone, tasks: Mapping[str, int], settings: Settings | None = None
) -> MultiTaskDetector:
    """Add an Oriented R-CNN per task to a backbone; arguments as for :func:`build_detector`."""
    heads = {name: build_head(backbone.out_channels, count, settings) for name, count in tasks.items()}
    return MultiTaskDetector(backbone, heads)


def build_head(
    in_channels: Sequence[int], num_classes: int, settings: Settings | None = None
) -> OrientedRCNN:
    """Build neck, RPN and RoI head of a task for four feature maps of these channels."""
    return OrientedRCNN(in_channels, num_classes, settings or Settings())


class DetectionModel(TaskModel):
    """mmengine model around a :class:`~s5.detection.network.detector.MultiTaskDetector`.

    Args:
        detector: The network.
        dtype: Autocast dtype; None is float32. Geometry and losses are always float32.
        weights: Weight of each task in the loss, by default 1.
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
        """The network, whose state dict is saved and loaded as weights."""
        return self.detector

    def forward(
        self, images: Tensor, counts: Counts, mode: str = "predict", **batch: Any
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses or detections of a batch that is ordered by task.

        Args:
            images: (B, 3, S, S) uint8, padded on the right and at the bottom.
            counts: Number of images of each task, in the order of the batch.
            mode: `loss` or `predict`.
            batch: `shapes` (height, width) of the images without padding and `scales` from the image file to
                the input. For `loss` also `boxes` (n, 5), `labels` (n) and `ignored` (m, 5) of each image.
                For `predict` optionally `valid`, the masks of :func:`on_data`.

        Returns:
            `loss`: `loss` and `loss_<task>_<part>`. `predict`: for each image, `pred_instances` with
            `bboxes` (n, 5) in pixels of the image file, `scores` and `labels`.
        """
        with self.autocast():
            inputs = self._prepare(to_unit(images))
            if mode == "loss":
                return self._total(self.detector.loss(inputs, self._samples(images, batch, True), counts))
            results = self.detector.predict(inputs, self._samples(images, batch, False), counts)
        valid = batch.get("valid") or [None] * len(results)
        return [
            {"pred_instances": on_data(_as_dict(result), mask)}
            for result, mask in zip(results, valid, strict=True)
        ]

    def predict_all(
        self,
        images: Tensor,
        shapes: Sequence[tuple[int, int]],
        scales: Sequence[float],
        tasks: Sequence[str] | None = None,
    ) -> dict[str, list[dict[str, Tensor]]]:
        """Predict the same images for several tasks in one pass of the network.

        Args:
            images: (B, 3, S, S) uint8, padded on the right and at the bottom.
            shapes: Height and width of the images without padding.
            scales: Scale factors from the image file to the input.
            tasks: Names of the tasks, by default all.

        Returns:
            By task, for each image: `bboxes` (n, 5) in pixels of the image file, `scores` and `labels`.
        """
        samples = self._samples(images, {"shapes": shapes, "scales": scales}, False)
        with self.autocast():
            by_task = self.detector.predict_all(self._prepare(to_unit(images)), samples, tasks)
        return {task: [_as_dict(result) for result in results] for task, results in by_task.items()}

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
    """Drop detections whose centre has no data.

    Args:
        found: `bboxes` (n, 5) in pixels of the image, and other tensors with n rows.
        valid: Bool (H, W), false where the image has no data; None if it has data everywhere. For a centre
            outside the image, the nearest pixel counts.
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
