"""Run a trained segmentor on patches: entropy, pseudo-labels and features from one forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s5.compat.precision import resolve_precision
from s5.curate.config import ScoreConfig
from s5.errors import ConfigError
from s5.segmentation.model import SegmentationModel
from s5.segmentation.trained import SegmentationSpec


class Scored(NamedTuple):
    """Results of a batch.

    Attributes:
        entropy: Mean entropy (B,) float32, in nats.
        labels: Pseudo-labels (B, H, W) uint8 train ids, 255 where no class is probable enough.
        classes: Pixels of each class (B, K) int64.
        features: (B, D) float32 of unit length.
    """

    entropy: Tensor
    labels: Tensor
    classes: Tensor
    features: Tensor


class Scorer:
    """A trained segmentor that scores patches.

    Args:
        spec: Description of the segmentor, with a single task.
        checkpoint: Its weights.
        device: Device to run on.
        settings: Settings of the step.

    Raises:
        ConfigError: The segmentor has several tasks, or no value for pixels without a pseudo-label.
        CheckpointError: The weights do not fit the description.
    """

    def __init__(
        self, spec: SegmentationSpec, checkpoint: Path, device: torch.device, settings: ScoreConfig
    ) -> None:
        spec = spec.only([] if settings.task is None else [settings.task])
        if len(spec.tables) > 1:
            raise ConfigError(
                f"{checkpoint}: has the tasks {', '.join(spec.tables)}; choose one with score.task"
            )
        (self.task, self.table), *_ = spec.tables.items()
        if settings.pseudo_labels and self.table.ignored_value is None:
            free = next(value for value in range(255, -1, -1) if value not in self.table.values)
            raise ConfigError(
                f"{checkpoint}: the label table of {self.task} ignores no value, so pseudo-labels could not "
                f"leave out pixels without data; train the segmentor with `ignore: [{free}]` in its labels"
            )
        self.device = device
        self.conf_thresh = settings.conf_thresh
        dtype = resolve_precision(settings.precision, device)
        self.model: SegmentationModel = spec.build(checkpoint, device, dtype)
        counted = torch.ones(self.table.num_classes)
        if self.table.background is not None:
            counted[self.table.background] = 0
        self.counted = counted.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor, valid: Tensor) -> Scored:
        """Score a batch.

        Args:
            images: (B, 3, H, W) uint8.
            valid: Bool (B, H, W), false where a patch has no data.
        """
        images, valid = (tensor.to(self.device, non_blocking=True) for tensor in (images, valid))
        features, logits = self.model.features_and_logits(images, self.task)
        entropy, best, labels = pixel_entropy(logits, self.counted)
        labels = torch.where((best >= self.conf_thresh) & valid, labels, 255).to(torch.uint8)
        pooled = torch.nn.functional.normalize(features[-1].float().mean((2, 3)), dim=1)
        return Scored(masked_mean(entropy, valid), labels, _count(labels, len(self.counted)), pooled)


def _count(labels: Tensor, classes: int) -> Tensor:
    counts = torch.zeros(len(labels), 256, dtype=torch.int64, device=labels.device)
    flat = labels.flatten(1).long()
    return counts.scatter_add_(1, flat, torch.ones_like(flat))[:, :classes]


def pixel_entropy(logits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of each pixel over the counted classes, `-sum p log p` (Eq. 1), in nats.

    Args:
        logits: (B, K, H, W) float32.
        counted: (K,), 0 for the background, which is part of the softmax but not of the sum, 1 for others.

    Returns:
        Entropy (B, H, W), the highest probability, and the class that has it.
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    best, labels = p.max(1)
    # Multiply instead of boolean indexing, which synchronises with the device.
    return -(p * log_p * counted[:, None, None]).sum(1), best, labels


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean (B,) of values (B, H, W) where `valid`; 0 where nothing is."""
    count = valid.sum((1, 2))
    return torch.where(valid, values, 0).sum((1, 2), dtype=torch.float64).div(count.clamp(min=1)).float()


Fetch = Callable[[], Scored]
"""Waits for the results of a batch and returns them on the host."""


def fetch(scored: Scored) -> Fetch:
    """Start copying results to the host; later batches on the device do not delay them."""
    if scored.entropy.device.type != "cuda":
        return lambda: scored
    host = Scored(*(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in scored))
    for target, source in zip(host, scored, strict=True):
        target.copy_(source, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Scored:
        copied.synchronize()
        return host

    return wait
