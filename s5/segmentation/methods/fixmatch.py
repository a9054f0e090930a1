"""FixMatch for semantic segmentation: the S4P pre-training objective (paper, Eq. 4-7)."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from s5.data.augmentation import StrongAugmentation
from s5.data.label_table import IGNORE
from s5.ops.channel_dropout import complementary_dropout
from s5.ops.cutmix import cutmix
from s5.ops.losses import pixel_cross_entropy, pseudo_label_loss
from s5.ops.photometric import apply_photometric, to_unit
from s5.ranges import NonNegative, NonNegativeFloat, Positive, Share, ShareBelowOne
from s5.segmentation.methods.confidence import THRESHOLDS, DistributionAlignment, RunningMean
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import SegHead, Segmentor
from s5.segmentation.windows import Inference
from s5.training.model import Features


class EmaTeacher(nn.Module):
    """A copy of a network whose weights follow it slowly.

    The decay grows with the steps taken, `min(1 - 1 / (step + 1), decay)`, so that early random weights are
    forgotten quickly. Buffers (normalisation statistics) are copied; the code of UniMatch V2 averages them.

    Args:
        network: The network to follow.
        decay: Final decay in [0, 1).
    """

    step: torch.Tensor

    def __init__(self, network: nn.Module, decay: float = 0.996) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module, skipped: torch.Tensor) -> None:
        """Move towards `network` after an optimizer step, unless that was skipped.

        The decay is computed on the device, because reading `skipped` or `step` would synchronise.

        Args:
            network: The network to follow.
            skipped: Bool scalar on the device.
        """
        self.step += ~skipped
        decay = (1 - 1 / (self.step.double() + 1)).clamp(max=self.decay)
        weight = torch.where(skipped, 0.0, 1 - decay).float()
        for mean, weights in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(weights, weight)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode."""
        return super().train(False)


@dataclass(frozen=True)
class Collapse:
    """Thresholds of the warnings about collapsed pseudo-labels.

    Attributes:
        share: Warn if a class has more than this share of the confident pixels between two log lines.
        missing_steps: Warn after this many steps without a confident pixel of a class that occurs in the
            labels.
    """

    share: Share = 0.95
    missing_steps: Positive = 1_000


@dataclass(frozen=True)
class FixMatchSettings:
    """The section `fixmatch` of the configuration.

    Attributes:
        conf_thresh: Minimum confidence of pseudo-labels in the loss (τ).
        lambda_u: Weight of the unlabeled loss; the sum is divided by `1 + lambda_u`.
        warmup_iters: First steps, on labeled images alone.
        ramp_iters: Steps after these in which the weight of the unlabeled loss grows linearly to `lambda_u`.
        pseudo_labels: Source of the pseudo-labels: the current weights, an EMA teacher, or stored masks.
        ema_decay: Final decay of the EMA teacher.
        float32_labels: Predict pseudo-labels in float32, independently of `precision`.
        alignment: Distribution alignment of the predictions before the threshold, with the class shares of
            the `labels` or with `uniform` shares.
        threshold: Selection or weighting of the pixels by confidence, a key of `THRESHOLDS`.
        momentum: Momentum of the running means of alignment and thresholds.
        feature_dropout: Share of the unlabeled images with complementary channel dropout on the features
            (UniMatch V2: 0.5, with two strong views).
        strong: Number and augmentation ranges of the strong views.
        collapse: Thresholds of the warnings about collapsed pseudo-labels.
    """

    conf_thresh: Share = 0.95
    lambda_u: NonNegativeFloat = 1.0
    warmup_iters: NonNegative = 0
    ramp_iters: NonNegative = 0
    pseudo_labels: Literal["current", "ema", "stored"] = "current"
    ema_decay: ShareBelowOne = 0.996
    float32_labels: bool = False
    alignment: Literal["none", "labels", "uniform"] = "none"
    threshold: Literal["fixed", "flexmatch", "freematch", "softmatch"] = "fixed"
    momentum: ShareBelowOne = 0.999
    feature_dropout: Share = 0.0
    strong: StrongAugmentation = StrongAugmentation()
    collapse: Collapse = Collapse()

    def __post_init__(self) -> None:
        """Reject statistics of predictions where there are none."""
        if self.pseudo_labels == "stored" and (self.alignment, self.threshold) != ("none", "fixed"):
            raise ValueError(
                "alignment and threshold need predicted pseudo-labels; with pseudo_labels: stored, set "
                "alignment: none and threshold: fixed"
            )


class View(NamedTuple):
    """One view of the unlabeled images and its targets.

    Attributes:
        images: (U, 3, H, W) in [0, 1].
        pseudo: Pseudo-labels (U, H, W) int64.
        weights: (U, H, W) weights of the pseudo-labels in the loss: bool, or float32 in [0, 1].
        valid: Bool (U, H, W), false in padding.
    """

    images: Tensor
    pseudo: Tensor
    weights: Tensor
    valid: Tensor


class FixMatch(SegmentationModel):
    """Supervised loss on labeled images plus consistency between weak and strong views of unlabeled images.

    A step runs the network twice: without gradients on the weak views, then with gradients on the labeled
    images and all strong views together. Other semi-supervised methods override parts of the step:
    :meth:`pseudo_labels` (from the logits of the weak views), :meth:`weights` (of the pixels in the loss),
    :meth:`strong_views` and :meth:`unlabeled_loss`.

    Args:
        segmentor: The network.
        inference: Inference settings of the only task, for validation.
        dtype: Autocast dtype; None is float32.
        settings: Settings of the method.

    Attributes:
        section: Name of the configuration section with the settings.
        class_counts: (2, K) float64, weighted pixels of each class in pseudo-labels and in labels, summed
            over the steps with unlabeled images. Set it to None to reset it.
    """

    section = "fixmatch"

    def __init__(
        self,
        segmentor: Segmentor,
        inference: Mapping[str, Inference],
        dtype: torch.dtype | None = None,
        settings: FixMatchSettings = FixMatchSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(segmentor, inference, dtype)
        self.settings = settings
        ema = settings.pseudo_labels == "ema"
        self.teacher = EmaTeacher(segmentor, settings.ema_decay) if ema else None
        (head,) = segmentor.heads.values()
        self.num_classes = cast(SegHead, head).num_classes
        kind, momentum = settings.alignment, settings.momentum
        self.alignment = (
            None if kind == "none" else DistributionAlignment(self.num_classes, momentum, kind == "uniform")
        )
        self.threshold = THRESHOLDS[settings.threshold](self.num_classes, settings.conf_thresh, momentum)
        # Not buffers, which DistributedDataParallel would overwrite with those of the main process.
        self.class_counts: Tensor | None = None
        self._counts_of_step: Tensor | None = None

    def after_step(self, skipped: Tensor) -> None:
        """Update the teacher, the running means and the class counts unless the step was skipped."""
        if self.teacher is not None:
            self.teacher.update(self.segmentor, skipped)
        for module in self.modules():
            if isinstance(module, RunningMean):
                module.commit(skipped)
        if self._counts_of_step is not None:
            counts = torch.where(skipped, 0, self._counts_of_step)
            self.class_counts = counts if self.class_counts is None else self.class_counts + counts
            self._counts_of_step = None

    def restart_teacher(self) -> None:
        """Reset the teacher to the current weights, after initial weights were loaded."""
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
        """Compute the losses of one batch.

        Args:
            images: (L + U, 3, H, W) uint8, labeled first.
            labels: (L, H, W) uint8 train ids, 255 ignored.
            padding: Bool (U, H, W), true in the padding of unlabeled images; None without unlabeled images.
            views: Random parameters of the strong views, see :class:`s5.data.loaders.FixMatchCollate`.
            stored: Stored pseudo-labels (U, H, W), 255 = none.

        Returns:
            `loss`, `loss_s` and, unless the unlabeled images have no weight, `loss_u` and `confident` (mean
            weight of the valid pixels).
        """
        labeled, weak = to_unit(images).tensor_split([len(labels)])
        lambda_u = self.lambda_u
        if padding is None or views is None or lambda_u == 0:
            loss_s = pixel_cross_entropy(self.logits(labeled), labels.long())
            return {"loss": loss_s, "loss_s": loss_s}
        labeled_pixels = self._sum_by_class(labels.long(), labels != IGNORE)
        view = self.weak_view(weak, ~padding, stored, labeled_pixels)
        counted = self._sum_by_class(view.pseudo, view.weights * view.valid)
        self._counts_of_step = torch.stack([counted, labeled_pixels])
        strong = self.strong_views(view, views)
        logits = self.logits(
            torch.cat([labeled, *(view.images for view in strong)]),
            perturb=self._feature_dropout(len(strong), len(weak)),
        )
        logits_s, logits_u = logits.tensor_split([len(labels)])
        loss_s = pixel_cross_entropy(logits_s, labels.long())
        loss_u = self.unlabeled_loss(logits_u, strong)
        return {
            "loss": (loss_s + lambda_u * loss_u) / (1 + lambda_u),
            "loss_s": loss_s,
            "loss_u": loss_u,
            "confident": (view.weights * view.valid).sum() / view.valid.sum().clamp(min=1),
        }

    @property
    def lambda_u(self) -> float:
        """Weight of the unlabeled loss in this iteration, after warm-up and ramp."""
        settings = self.settings
        steps = self.iteration - settings.warmup_iters + 1
        if steps <= 0:
            return 0.0
        return settings.lambda_u * min(steps / max(settings.ramp_iters, 1), 1.0)

    @torch.no_grad()
    def weak_view(
        self, images: Tensor, valid: Tensor, stored: Tensor | None, labeled_pixels: Tensor | None = None
    ) -> View:
        """Combine weak views with pseudo-labels, which are predicted unless they are stored.

        Args:
            images: (U, 3, H, W) in [0, 1].
            valid: Bool (U, H, W), false in padding.
            stored: Stored pseudo-labels (U, H, W), 255 = none; None predicts them.
            labeled_pixels: (K,) labeled pixels of each class in a training step; without, alignment and
                thresholds do not adapt.
        """
        if stored is None:
            logits = self.weak_logits(images)
            if self.alignment is not None:
                if labeled_pixels is not None:
                    self.alignment.observe(logits, valid, labeled_pixels)
                logits = self.alignment(logits)
            if labeled_pixels is not None:
                self.threshold.observe(logits, valid)
            pseudo, confidence = self.pseudo_labels(logits)
            return View(images, pseudo, self.weights(pseudo, confidence), valid)
        known = stored != IGNORE  # no threshold: those who stored the labels chose them
        return View(images, torch.where(known, stored, 0).long(), known, valid)

    @torch.no_grad()
    def weak_logits(self, images: Tensor) -> Tensor:
        """Logits (U, K, H, W) of the weak views in evaluation mode, from the teacher if there is one."""
        network = self.segmentor if self.teacher is None else cast(Segmentor, self.teacher.network)
        with evaluating(network):
            return self.logits(images, network, self.settings.float32_labels)

    def pseudo_labels(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels and confidences in [0, 1] (U, H, W) from logits (U, K, H, W) of the weak views."""
        best, pseudo = logits.max(1)
        return pseudo, torch.exp(best - logits.logsumexp(1))  # the largest softmax probability

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """Weights of predicted pseudo-labels in the loss (U, H, W): bool, or float32 in [0, 1]."""
        return self.threshold.weights(pseudo, confidence)

    @torch.no_grad()
    def strong_views(self, weak: View, views: dict[str, Tensor]) -> list[View]:
        """Apply photometric augmentation, then CutMix to images and targets."""
        result = []
        for photometric, boxes, partner in zip(
            views["photometric"], views["boxes"], views["partner"], strict=True
        ):
            changed = apply_photometric(weak.images, photometric, self.settings.strong.blur_sigma[1])
            parts = weak._replace(images=changed)
            result.append(View(*(cutmix(part, boxes, partner) for part in parts)))
        return result

    def unlabeled_loss(self, logits: Tensor, strong: Sequence[View]) -> Tensor:
        """Mean loss of all strong views, from their logits (V * U, K, H, W)."""
        parts = logits.split(len(logits) // len(strong))
        losses = [
            pseudo_label_loss(part, view.pseudo, view.weights, view.valid)
            for part, view in zip(parts, strong, strict=True)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def preview(self, batch: dict[str, Any], count: int = 3) -> dict[str, Tensor]:
        """Weak view, strong view, confident pseudo-labels and prediction of the first unlabeled images."""
        batch = self.data_preprocessor(batch, False)
        _, weak = to_unit(batch["images"]).tensor_split([len(batch["labels"])])
        view = self.weak_view(weak, ~batch["padding"], batch.get("stored"))
        view = self.strong_views(view, batch["views"])[0]
        with evaluating(self.segmentor):
            prediction = self.logits(view.images[:count]).argmax(1)
        return {
            "weak": weak[:count],
            "strong": view.images[:count],
            "pseudo": torch.where((view.weights >= 0.5) & view.valid, view.pseudo, IGNORE)[:count],
            "prediction": prediction,
        }

    def _feature_dropout(self, views: int, images: int) -> Callable[[Features], Features] | None:
        share = self.settings.feature_dropout
        if share == 0:
            return None
        return lambda features: complementary_dropout(features, views, images, share)

    def _sum_by_class(self, classes: Tensor, weights: Tensor) -> Tensor:
        # Unlike bincount, scatter_add does not synchronise the device.
        sums = torch.zeros(self.num_classes, dtype=torch.float64, device=classes.device)
        index = torch.where(weights > 0, classes, 0)
        return sums.scatter_add_(0, index.flatten(), weights.flatten().double())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put `network` into evaluation mode and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
