"""FixMatch for semantic segmentation: the S4P pre-training objective (paper, Eq. 4-7)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from s5.ops.cutmix import cutmix
from s5.ops.losses import pixel_cross_entropy, pseudo_label_loss
from s5.ops.photometric import apply_photometric
from s5.segmentation.methods.ema import EmaTeacher
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import SegHead, Segmentor
from s5.segmentation.windows import Inference, to_unit

IGNORE = 255


@dataclass(frozen=True)
class StrongView:
    """One strong view of the unlabeled images and what it is trained on.

    Attributes:
        images: (U, 3, H, W) in [0, 1].
        pseudo: pseudo-labels (U, H, W) int64.
        conf: their confidence (U, H, W) in [0, 1].
        valid: False where the image is padding (U, H, W).
    """

    images: Tensor
    pseudo: Tensor
    conf: Tensor
    valid: Tensor


class FixMatch(SegmentationModel):
    """Supervised loss on labeled images plus consistency between weak and strong views of unlabeled ones.

    A step runs the network twice: once on the weak unlabeled images without gradient, once on the labeled
    images and all strong views together with gradient. A method with other strong views (UniMatch) overrides
    :meth:`strong_views`; everything else stays.

    Args:
        segmentor: the network.
        inference: how validation images are predicted, by the one task.
        dtype: autocast type, None = float32.
        conf_thresh: pseudo-labels below this confidence are not trained on (τ).
        lambda_u: weight of the unlabeled loss; the sum is divided by ``1 + lambda_u``.
        ema_decay: decay of an EMA teacher that makes the pseudo-labels; None takes the current weights.
        max_blur_sigma: largest sigma of the blur in pixels; sets the width of its kernel.
        float32_labels: predict the pseudo-labels in float32, whatever ``dtype`` is.

    Attributes:
        class_counts: (2, K) int64, pixels of each class in confident pseudo-labels and in labels. Summed over
            all steps on unlabeled images since it was None; set it to None to begin again.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        inference: Mapping[str, Inference],
        dtype: torch.dtype | None = None,
        conf_thresh: float = 0.95,
        lambda_u: float = 1.0,
        ema_decay: float | None = None,
        max_blur_sigma: float = 2.0,
        float32_labels: bool = False,
    ) -> None:
        super().__init__(segmentor, inference, dtype)
        self.conf_thresh = conf_thresh
        self.lambda_u = lambda_u
        self.max_blur_sigma = max_blur_sigma
        self.float32_labels = float32_labels
        self.teacher = None if ema_decay is None else EmaTeacher(segmentor, ema_decay)
        (head,) = segmentor.heads.values()
        num_classes = cast(SegHead, head).num_classes
        self.num_classes = num_classes
        # Not buffers: DistributedDataParallel would overwrite them with the main process's.
        self.class_counts: Tensor | None = None
        self._counts_of_step: Tensor | None = None

    def after_step(self, skipped: Tensor) -> None:
        """Update the teacher and the class counts, unless the step was skipped."""
        if self.teacher is not None:
            self.teacher.update(self.segmentor, skipped)
        if self._counts_of_step is not None:
            counts = torch.where(skipped, 0, self._counts_of_step)
            self.class_counts = counts if self.class_counts is None else self.class_counts + counts
            self._counts_of_step = None

    def restart_teacher(self) -> None:
        """Let the teacher begin again from the current weights, after initial weights were loaded."""
        if self.teacher is not None:
            self.teacher = EmaTeacher(self.segmentor, self.teacher.decay)

    def loss(
        self,
        images: Tensor,
        labels: Tensor,
        padding: Tensor | None = None,
        views: dict[str, Tensor] | None = None,
        stored: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            images: (L + U, 3, H, W) uint8, labeled first.
            labels: (L, H, W) uint8 train ids, 255 ignored.
            padding: (U, H, W), True where an unlabeled image is padding.
            views: draws of the strong views, see :class:`s5.data.loaders.FixMatchCollate`.
            stored: (U, H, W) stored pseudo-labels, 255 = none.

        Returns:
            ``loss``, and with unlabeled images ``loss_s``, ``loss_u`` and ``confident`` (share of the valid
            pixels).
        """
        labeled, weak = to_unit(images).tensor_split([len(labels)])
        if padding is None or views is None:
            loss_s = pixel_cross_entropy(self.logits(labeled), labels.long())
            return {"loss": loss_s, "loss_s": loss_s}
        pseudo, conf = self.pseudo_labels(weak, stored)
        self._counts_of_step = torch.stack(
            [
                self._pixels_by_class(pseudo, (conf >= self.conf_thresh) & ~padding),
                self._pixels_by_class(labels.long(), labels != IGNORE),
            ]
        )
        strong = self.strong_views(StrongView(weak, pseudo, conf, ~padding), views)
        logits = self.logits(torch.cat([labeled, *(view.images for view in strong)]))
        logits_s, logits_u = logits.tensor_split([len(labels)])
        loss_s = pixel_cross_entropy(logits_s, labels.long())
        loss_u = torch.stack(
            [
                pseudo_label_loss(part, view.pseudo, view.conf, view.valid, self.conf_thresh)
                for part, view in zip(logits_u.split(len(weak)), strong, strict=True)
            ]
        ).mean()
        return {
            "loss": (loss_s + self.lambda_u * loss_u) / (1 + self.lambda_u),
            "loss_s": loss_s,
            "loss_u": loss_u,
            "confident": ((conf >= self.conf_thresh) & ~padding).sum() / (~padding).sum().clamp(min=1),
        }

    @torch.no_grad()
    def pseudo_labels(self, weak: Tensor, stored: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels and confidences (U, H, W) of the weak views, stored or predicted in evaluation mode."""
        if stored is not None:
            known = stored != IGNORE
            return torch.where(known, stored, 0).long(), known.float()
        network = self.segmentor if self.teacher is None else cast(Segmentor, self.teacher.network)
        with evaluating(network):
            logits = self.logits(weak, network, self.float32_labels)
        best, pseudo = logits.max(1)
        return pseudo, torch.exp(best - logits.logsumexp(1))  # the largest softmax probability

    @torch.no_grad()
    def strong_views(self, weak: StrongView, views: dict[str, Tensor]) -> list[StrongView]:
        """The strong views: photometric change, then CutMix of images, labels, confidences and validity."""
        result = []
        for photometric, boxes, partner in zip(
            views["photometric"], views["boxes"], views["partner"], strict=True
        ):
            changed = apply_photometric(weak.images, photometric, self.max_blur_sigma)
            mixed = (cutmix(x, boxes, partner) for x in (changed, weak.pseudo, weak.conf, weak.valid))
            result.append(StrongView(*mixed))
        return result

    @torch.no_grad()
    def preview(self, batch: dict[str, Any], count: int = 3) -> dict[str, Tensor]:
        """Weak and strong view, confident pseudo-label and prediction of the first unlabeled images."""
        batch = self.data_preprocessor(batch, False)
        _, weak = to_unit(batch["images"]).tensor_split([len(batch["labels"])])
        pseudo, conf = self.pseudo_labels(weak, batch.get("stored"))
        view = self.strong_views(StrongView(weak, pseudo, conf, ~batch["padding"]), batch["views"])[0]
        with evaluating(self.segmentor):
            prediction = self.logits(view.images[:count]).argmax(1)
        return {
            "weak": weak[:count],
            "strong": view.images[:count],
            "pseudo": torch.where((view.conf >= self.conf_thresh) & view.valid, view.pseudo, IGNORE)[:count],
            "prediction": prediction,
        }

    def _pixels_by_class(self, classes: Tensor, counted: Tensor) -> Tensor:
        # scatter_add, unlike bincount, does not synchronise with the device
        pixels = torch.zeros(self.num_classes, dtype=torch.int64, device=classes.device)
        where = torch.where(counted, classes, 0)
        return pixels.scatter_add_(0, where.flatten(), counted.flatten().long())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Run ``network`` in evaluation mode and put every module back into the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
