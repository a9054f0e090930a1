"""One detector for several datasets: a shared ViT, once per batch, and an Oriented R-CNN per task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from s5.models.detection.oriented_rcnn import OrientedRCNN
from s5.models.detection.settings import Settings
from s5.models.vit import ViT


class MultiTaskDetector(nn.Module):
    """Oriented R-CNN for any number of tasks on one ViT.

    The images of a batch are ordered by task. The backbone runs once on all of them; FPN, RPN and RoI head
    of a task run on its slice. With one task this is plain Oriented R-CNN.

    Attributes:
        backbone: the encoder, shared by all tasks.
        heads: neck, RPN and RoI head of each task, in the order of the batch.
    """

    def __init__(self, backbone: ViT, heads: Mapping[str, OrientedRCNN]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the batch."""
        return tuple(self.heads)

    def loss(
        self, images: Tensor, samples: SampleList, counts: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        """Losses by part of every task in the batch.

        Args:
            images: (B, 3, H, W), normalised, ordered by task; H and W divisible by 32.
            samples: their ground truth.
            counts: images of each task.
        """
        parts = self._parts(images, samples, counts)
        return {task: head.loss(features, own) for task, head, features, own in parts}

    def predict(
        self, images: Tensor, samples: SampleList, counts: Sequence[int], rescale: bool = True
    ) -> list[InstanceData]:
        """Detections of every image: rotated boxes, scores, labels; arguments as of :meth:`loss`.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            samples: what is known of them (shapes, scale).
            counts: images of each task.
            rescale: boxes in pixels of the image file instead of those of the input.
        """
        parts = self._parts(images, samples, counts)
        return [found for _, head, features, own in parts for found in head.predict(features, own, rescale)]

    def predict_all(
        self, images: Tensor, samples: SampleList, rescale: bool = True
    ) -> dict[str, list[InstanceData]]:
        """Detections of the same images by every task; arguments as of :meth:`predict`.

        A dense backbone computes its feature maps once for all heads; one with experts goes through once with
        the images repeated for every task.
        """
        count = len(images)
        if self.backbone.experts:
            repeated = images.repeat(len(self.heads), 1, 1, 1), [*samples] * len(self.heads)
            found = self.predict(*repeated, [count] * len(self.heads), rescale)
            return {task: found[i * count : (i + 1) * count] for i, task in enumerate(self.heads)}
        maps = self.backbone(images)
        heads = {task: cast(OrientedRCNN, head) for task, head in self.heads.items()}
        return {task: head.predict(head.neck(maps), samples, rescale) for task, head in heads.items()}

    def _parts(
        self, images: Tensor, samples: SampleList, counts: Sequence[int]
    ) -> Iterator[tuple[str, OrientedRCNN, tuple[Tensor, ...], SampleList]]:
        """Task, head, the neck's feature maps and the samples of each task in the batch."""
        maps = self.backbone(images, counts if self.backbone.experts else None)
        slices = zip(*(level.split(list(counts)) for level in maps), strict=True)
        first = 0
        for (task, head), part, count in zip(self.heads.items(), slices, counts, strict=True):
            if count:
                own = samples[first : first + count]
                yield task, cast(OrientedRCNN, head), cast(OrientedRCNN, head).neck(part), own
            first += count


def build_detector(
    backbone: str,
    tasks: Mapping[str, int],
    img_size: int = 1024,
    *,
    expert_channels: int = 0,
    drop_path: float = 0.1,
    norm_eps: float = 1e-5,
    activation_checkpointing: bool = False,
    settings: Settings | None = None,
) -> MultiTaskDetector:
    """Build a backbone with an Oriented R-CNN per task, randomly initialised.

    Args:
        backbone: name in `VARIANTS`.
        tasks: number of classes by task, in the order of the batch.
        img_size: image size in pixels of the positional embedding.
        expert_channels: task-specific channels of the backbone's FFNs; 0 gives a dense backbone.
        drop_path: stochastic depth rate of the last block.
        norm_eps: epsilon of the norms in the blocks.
        activation_checkpointing: recompute the blocks in the backward pass to save memory.
        settings: of Oriented R-CNN; the published ones if left out.
    """
    vit = ViT(
        backbone,
        img_size,
        drop_path,
        norm_eps,
        activation_checkpointing=activation_checkpointing,
        experts=tuple(tasks) if expert_channels else (),
        expert_channels=expert_channels,
    )
    heads = {name: build_head(vit.variant.width, count, settings) for name, count in tasks.items()}
    return MultiTaskDetector(vit, heads)


def build_head(width: int, num_classes: int, settings: Settings | None = None) -> OrientedRCNN:
    """Neck, RPN and RoI head of a task on feature maps of ``width`` channels, with the published settings."""
    return OrientedRCNN(width, num_classes, settings or Settings())
