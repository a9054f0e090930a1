"""Complementary channel dropout of feature maps (Yang et al., UniMatch V2, TPAMI 2025, Section 3.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def complementary_dropout(
    features: Sequence[Tensor], views: int, images: int, share: float
) -> tuple[Tensor, ...]:
    """Drop channels of the feature maps of strong views.

    A mask M keeps each channel with probability 0.5; the first view of an image is multiplied by 2 M, the
    second by 2 (1 - M), a third by a new mask, and so on. As in the authors' code, only a share of the images
    is changed, and maps with equal numbers of channels have the same mask. The authors' maps are those of the
    encoder before the decoder; here they are the levels of the pyramid. With one view, this is the feature
    perturbation of UniMatch, on the strong view.

    Args:
        features: Maps (B, C, H, W); the last `views * images` elements are the strong views, one view after
            another.
        views: Number of strong views.
        images: Number of images in each view.
        share: Share of the images whose features are changed, rounded up to whole images.

    Returns:
        New maps in the order of `features`.
    """
    first = features[0]
    others = len(first) - views * images
    order = torch.rand(images, 1, device=first.device).argsort(0)
    untouched = order >= math.ceil(round(share * images, 6))
    masks: dict[int, Tensor] = {}
    for level in features:
        channels = level.shape[1]
        if channels not in masks:
            pairs = torch.rand((views + 1) // 2, images, channels, device=first.device) < 0.5
            factors = 2.0 * torch.stack([pairs, ~pairs], 1).flatten(0, 1)[:views]
            factors = torch.where(untouched, 1.0, factors).flatten(0, 1)
            masks[channels] = torch.cat([factors.new_ones(others, channels), factors])
    return tuple(level * masks[level.shape[1]][..., None, None].to(level.dtype) for level in features)
