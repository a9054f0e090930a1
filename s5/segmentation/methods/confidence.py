"""From predictions of weak views to pseudo-labels and their weights: distribution alignment and thresholds.

Everything works on pixels: where a paper takes a mean over the images of a batch, this takes the mean over
the valid pixels of all processes. The state is in running means, which change after a step unless it was
skipped. The papers start their means at 1 / K; these start with the first step, so that a warm-up may
precede them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALLEST_SHARE = 1e-6  # of a class, so that alignment multiplies none by zero or infinity
SMALLEST_VARIANCE = 1e-6  # of the confidence


class RunningMean(nn.Module):
    """Exponential moving average of a vector.

    The weight of the old value grows with the steps t taken, `min(t / (t + 1), momentum)`, so that the mean
    starts with that of the first step.

    Args:
        initial: Value (K,) before the first step.
        momentum: Final weight of the old value in each step (m in the papers).
    """

    value: Tensor
    steps: Tensor

    def __init__(self, initial: Tensor, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", initial)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._next: tuple[Tensor, Tensor] | None = None  # value and steps after this step

    @property
    def current(self) -> Tensor:
        """The mean including that of a step in progress."""
        return self.value if self._next is None else self._next[0]

    def observe(
        self, sums: Tensor, count: Tensor, of_mean: Callable[[Tensor], Tensor] = lambda mean: mean
    ) -> None:
        """Include the pixels of a step; without any, or with sums that are not finite, nothing changes.

        Args:
            sums: Sums over the pixels of this process.
            count: Number of these pixels.
            of_mean: What to average over the steps, as a function of the mean over all pixels.
        """
        total = torch.cat([sums.double(), count.double().reshape(1)])
        if dist.is_initialized():
            dist.all_reduce(total)
        usable = (total[-1] > 0) & total.isfinite().all()
        mean = of_mean(total[:-1] / total[-1].clamp(min=1)).float()
        old = (self.steps / (self.steps + 1)).clamp(max=self.momentum)
        value = torch.where(usable, old * self.value + (1 - old) * mean, self.value)
        self._next = value, self.steps + usable

    def commit(self, skipped: Tensor) -> None:
        """End a step: keep its mean unless it was skipped (bool scalar on the device)."""
        if self._next is not None:
            for kept, new in zip((self.value, self.steps), self._next, strict=True):
                kept.copy_(torch.where(skipped, kept, new))
            self._next = None


class DistributionAlignment(nn.Module):
    """Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020, Section 3.1).

    Predictions q become `Normalize(q * p(y) / p~(y))`, where p~(y) is the running mean of the predictions
    (exponential; in the paper that of the last 128 batches) and p(y) that of the labels. Logits become
    `logits + log(p(y) / p~(y))`. With `uniform`, p(y) is 1 / K, which gives rare classes more pseudo-labels.
    (SoftMatch's uniform alignment changes weights, not labels.)

    Args:
        classes: Number of classes K.
        momentum: Momentum of the running means.
        uniform: Align with equal shares instead of those of the labels.
    """

    def __init__(self, classes: int, momentum: float, uniform: bool = False) -> None:
        super().__init__()
        equal = torch.full((classes,), 1 / classes)
        self.predicted = RunningMean(equal, momentum)
        self.labeled = None if uniform else RunningMean(equal.clone(), momentum)

    def observe(self, logits: Tensor, valid: Tensor, labels: Tensor) -> None:
        """Include the predictions and labels of a step.

        Args:
            logits: (U, K, H, W) of the weak views.
            valid: Bool (U, H, W), false in padding.
            labels: (K,) labeled pixels of each class.
        """
        self.predicted.observe(_sum_by_class(logits.softmax(1), valid), valid.sum())
        if self.labeled is not None:
            self.labeled.observe(labels, labels.sum())

    def forward(self, logits: Tensor) -> Tensor:
        """Align logits (U, K, H, W)."""
        predicted = self.predicted.current.clamp(min=SMALLEST_SHARE)
        target = (
            1 / len(predicted) if self.labeled is None else self.labeled.current.clamp(min=SMALLEST_SHARE)
        )
        return logits + (target / predicted).log()[:, None, None]


class Threshold(nn.Module, ABC):
    """Base class: selection of pixels by a threshold of the confidence for each class.

    Args:
        classes: Number of classes K.
        conf_thresh: Threshold of the confidence (τ).
        momentum: Momentum of running means (m).
    """

    def __init__(self, classes: int, conf_thresh: float, momentum: float) -> None:
        super().__init__()
        self.classes, self.conf_thresh, self.momentum = classes, conf_thresh, momentum

    def observe(self, logits: Tensor, valid: Tensor) -> None:
        """Adapt to a training step.

        Args:
            logits: (U, K, H, W) of the weak views, aligned.
            valid: Bool (U, H, W), false in padding.
        """

    @abstractmethod
    def by_class(self) -> Tensor:
        """Thresholds of the classes (K,)."""

    def scalars(self, classes: Sequence[str]) -> dict[str, float]:
        """Values to log, by name."""
        return {f"threshold/{name}": v for name, v in zip(classes, self.by_class().tolist(), strict=True)}

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """Weights of the pixels in the loss (U, H, W), bool or float32 in [0, 1].

        Args:
            pseudo: Pseudo-labels (U, H, W) int64.
            confidence: Their probabilities (U, H, W).
        """
        return confidence >= self.by_class()[pseudo]


class FixedThreshold(Threshold):
    """FixMatch: the same threshold for all classes (Sohn et al., NeurIPS 2020)."""

    def by_class(self) -> Tensor:
        """Thresholds of the classes (K,)."""
        return torch.full((self.classes,), self.conf_thresh)

    def scalars(self, classes: Sequence[str]) -> dict[str, float]:
        """Nothing: the threshold never changes."""
        return {}

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """True where the confidence (U, H, W) reaches the threshold."""
        return confidence >= self.conf_thresh


class FlexMatch(Threshold):
    """Curriculum pseudo-labeling (Zhang et al., FlexMatch, NeurIPS 2021, Eq. 5-7, 11, 12).

    σ(c) is the share of pixels with a confident pseudo-label c, here a running mean, because predictions of
    single pixels are not remembered; `β(c) = σ(c) / max(max σ, 1 - sum σ)`, threshold `τ β(c) / (2 - β(c))`.
    """

    def __init__(self, classes: int, conf_thresh: float, momentum: float) -> None:
        super().__init__(classes, conf_thresh, momentum)
        self.learned = RunningMean(torch.zeros(classes), momentum)  # σ

    def observe(self, logits: Tensor, valid: Tensor) -> None:
        """Include the confident pixels of a step."""
        confidence, pseudo = logits.softmax(1).max(1)
        counted = (confidence >= self.conf_thresh) & valid
        pixels = torch.zeros(self.classes, device=logits.device)
        pixels.scatter_add_(0, torch.where(counted, pseudo, 0).flatten(), counted.flatten().float())
        self.learned.observe(pixels, valid.sum())

    def by_class(self) -> Tensor:
        """Thresholds of the classes (K,)."""
        learned = self.learned.current
        beta = learned / torch.maximum(learned.max(), 1 - learned.sum())
        return self.conf_thresh * beta / (2 - beta)


class FreeMatch(Threshold):
    """Self-adaptive thresholds (Wang et al., FreeMatch, ICLR 2023, Eq. 5-8); `conf_thresh` is not used.

    The global threshold τ_t is the running mean of the confidence, the local ones are the running means p~(c)
    of the predictions, and the threshold of a class is `p~(c) / max p~ * τ_t`. With alignment, the
    predictions are aligned ones, so that rare classes have low thresholds, in proportion to their labels.
    The paper's fairness loss is left out.
    """

    def __init__(self, classes: int, conf_thresh: float, momentum: float) -> None:
        super().__init__(classes, conf_thresh, momentum)
        self.means = RunningMean(torch.full((classes + 1,), 1 / classes), momentum)  # p~(c), then τ_t

    def observe(self, logits: Tensor, valid: Tensor) -> None:
        """Include the predictions of a step."""
        probabilities = logits.softmax(1)
        confidence = torch.where(valid, probabilities.amax(1), 0).sum()
        sums = torch.cat([_sum_by_class(probabilities, valid), confidence.reshape(1)])
        self.means.observe(sums, valid.sum())

    def by_class(self) -> Tensor:
        """Thresholds of the classes (K,)."""
        *_, overall = means = self.means.current
        return means[:-1] / means[:-1].max() * overall


class SoftMatch(Threshold):
    """Truncated Gaussian weights (Chen et al., SoftMatch, ICLR 2023, Eq. 7-9); `conf_thresh` is not used.

    A pixel of confidence p below the running mean μ has the weight `exp(-(p - μ)² / (2 σ²))`, others have 1;
    σ² is the running mean of the variance. (The authors' code divides σ² by 4.)
    """

    def __init__(self, classes: int, conf_thresh: float, momentum: float) -> None:
        super().__init__(classes, conf_thresh, momentum)
        self.moments = RunningMean(torch.tensor([1 / classes, 1.0]), momentum)  # μ, σ²

    def observe(self, logits: Tensor, valid: Tensor) -> None:
        """Include the confidences of a step."""
        confidence = torch.where(valid, logits.softmax(1).amax(1), 0).double()
        sums = torch.stack([confidence.sum(), (confidence**2).sum()])
        self.moments.observe(sums, valid.sum(), lambda mean: torch.stack([mean[0], mean[1] - mean[0] ** 2]))

    def by_class(self) -> Tensor:
        """The mean confidence, above which the weight is 1, for every class (K,)."""
        return self.moments.current[:1].expand(self.classes)

    def scalars(self, classes: Sequence[str]) -> dict[str, float]:
        """The mean confidence, the same for all classes."""
        return {"threshold/mean_confidence": self.moments.current[0].item()}

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """Weights of the pixels in the loss (U, H, W), float32 in (0, 1]."""
        mean, variance = self.moments.current
        below = (confidence - mean).clamp(max=0)
        return torch.exp(-(below**2) / (2 * variance.clamp(min=SMALLEST_VARIANCE)))


def _sum_by_class(probabilities: Tensor, valid: Tensor) -> Tensor:
    """Sums (K,) of probabilities (U, K, H, W) over the valid pixels (U, H, W)."""
    return torch.einsum("ukhw,uhw->k", probabilities, valid.to(probabilities.dtype))


THRESHOLDS: dict[str, type[Threshold]] = {
    "fixed": FixedThreshold,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
}
