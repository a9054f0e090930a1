"""Entropy of the pixels of predictions, and its mean where an image has data."""

import torch
from torch import Tensor


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
    # A product, not a boolean index, which would wait for the device.
    return -(p * log_p * counted[:, None, None]).sum(1), best, labels


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean (B,) of values (B, H, W) where `valid`; 0 where nothing is."""
    count = valid.sum((1, 2))
    return torch.where(valid, values, 0).sum((1, 2), dtype=torch.float64).div(count.clamp(min=1)).float()
