"""Multi-dataset fine-tuning: one forward pass for the images of all tasks (paper, MoE-MDF section)."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s5.backbones import Counts
from s5.ops.losses import dice_loss, focal_loss, pixel_cross_entropy
from s5.ops.photometric import apply_photometric, to_unit
from s5.ranges import PositiveFloat
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import Segmentor
from s5.segmentation.windows import Inference


@dataclass(frozen=True)
class TaskLoss:
    """Loss of one task.

    Attributes:
        kind: `ce` (cross-entropy), `ce_dice` (cross-entropy plus Dice loss) or `focal`.
        weight: Weight of the task in the total loss.
    """

    kind: Literal["ce", "ce_dice", "focal"] = "ce"
    weight: PositiveFloat = 1.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the unweighted loss of logits (B, K, H, W) and train ids (B, H, W), 255 = ignored."""
        if self.kind == "focal":
            return focal_loss(logits, labels)
        loss = pixel_cross_entropy(logits, labels)
        return loss if self.kind == "ce" else loss + dice_loss(logits, labels)


class MultiDataset(SegmentationModel):
    """A segmentor that is trained on several tasks simultaneously.

    The loss is the weighted sum of the tasks' losses. Tasks that have not started are frozen
    (:meth:`activate`): their parameters have no gradients and take part in neither optimizer steps nor
    gradient reductions.

    Args:
        segmentor: The network, with a head and possibly experts per task.
        inference: Inference settings of each task, for validation.
        losses: Loss of each task.
        dtype: Autocast dtype; None is float32.
        max_blur_sigma: Maximum sigma of the blur, in pixels, of each task with photometric augmentation;
            images of other tasks are not augmented.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        inference: Mapping[str, Inference],
        losses: Mapping[str, TaskLoss],
        dtype: torch.dtype | None = None,
        max_blur_sigma: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(segmentor, inference, dtype)
        self.losses = dict(losses)
        self.max_blur_sigma = dict(max_blur_sigma or {})
        self.active = set(segmentor.tasks)
        self._frozen = {name for name, p in segmentor.named_parameters() if not p.requires_grad}

    def loss(
        self,
        images: Tensor,
        labels: Tensor,
        counts: Counts,
        photometric: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            images: (B, 3, H, W) uint8, ordered by task.
            labels: (B, H, W) uint8 train ids of each image's task, 255 ignored.
            counts: Number of images of each task, in the order of the batch; 0 for tasks that have not
                started.
            photometric: (B, 6) parameters of :func:`~s5.ops.photometric.apply_photometric`; None disables
                the augmentation.

        Returns:
            `loss`, and the unweighted `loss_<task>` of each task in the batch.
        """
        images = to_unit(images)
        if photometric is not None:
            images = self._augmented(images, photometric, counts)
        with self.autocast():
            logits = self.segmentor.forward_tasks(self._prepare(images), counts)
        parts = dict(zip(counts, labels.split(list(counts.values())), strict=True))
        losses = {task: self.losses[task](logits[task], parts[task]) for task in logits}
        total = torch.stack([self.losses[task].weight * loss for task, loss in losses.items()]).sum()
        return {"loss": total, **{f"loss_{task}": loss for task, loss in losses.items()}}

    @torch.no_grad()
    def _augmented(self, images: Tensor, photometric: Tensor, counts: Counts) -> Tensor:
        """Augment the images of tasks with photometric augmentation, with a blur kernel size per task."""
        if not self.max_blur_sigma:
            return images
        sizes = list(counts.values())
        parts = list(images.split(sizes))
        for i, (task, rows) in enumerate(zip(counts, photometric.split(sizes), strict=True)):
            if counts[task] and task in self.max_blur_sigma:
                parts[i] = apply_photometric(parts[i], rows, self.max_blur_sigma[task])
        return torch.cat(parts)

    def activate(self, tasks: Collection[str]) -> None:
        """Train the heads, experts and adapters of these tasks and freeze those of all others."""
        self.active = set(tasks)
        for task in self.segmentor.tasks:
            for name, parameter in task_parameters(self.segmentor, task):
                parameter.requires_grad_(task in self.active and name not in self._frozen)


def task_parameters(segmentor: Segmentor, task: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of the head, the experts and the adapters of a task."""
    head, own = f"heads.{task}.", (f".experts.{task}.", f".lora.{task}.")
    return (
        (name, p)
        for name, p in segmentor.named_parameters()
        if name.startswith(head) or any(part in name for part in own)
    )
