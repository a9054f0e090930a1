"""Segmentation losses: float32 under any autocast, no device synchronisation, 0 if there are no pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # train id of pixels that do not count
SMOOTH = 1.0  # added to both parts of the Dice fraction


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the labeled pixels (L_s, paper Eq. 6).

    Args:
        logits: (B, K, H, W), any floating dtype.
        target: (B, H, W) integer train ids; 255 marks pixels that do not count.

    Returns:
        Scalar float32; 0, still attached to the graph, when every pixel is ignored.
    """
    target = target.long()
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp(min=1)


def pseudo_label_loss(
    logits: Tensor,
    pseudo: Tensor,
    weights: Tensor,
    valid: Tensor,
) -> Tensor:
    """Weighted cross-entropy against pseudo-labels, averaged over all valid pixels (L_us, paper Eq. 7).

    Pixels of weight 0, as below the threshold, add 0 to the sum but count in the average; invalid pixels
    (padding) are excluded from both.

    Args:
        logits: (B, K, H, W) of the strong view, any floating dtype.
        pseudo: (B, H, W) integer pseudo-labels in [0, K).
        weights: (B, H, W) bool, true where the pseudo-label is trained on, or float weights.
        valid: (B, H, W) bool, false where there is no image.

    Returns:
        Scalar float32; 0, still attached to the graph, without a pixel of positive weight or a valid one.
    """
    if weights.is_floating_point():
        nll = F.cross_entropy(logits.float(), pseudo.long(), reduction="none")
        total = (nll * weights * valid).sum()
    else:
        ignored = -1
        target = torch.where(valid & weights, pseudo.long(), ignored)
        total = F.cross_entropy(logits.float(), target, ignore_index=ignored, reduction="sum")
    return total / valid.sum().clamp(min=1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss over the labeled pixels (Lin et al., ICCV 2017, Eq. 4, without class weights).

    Args and returns as `pixel_cross_entropy`; `gamma` 0 is the cross-entropy.
    """
    target = target.long()
    nll = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="none")
    total = ((1 - torch.exp(-nll)) ** gamma * nll).sum()  # ignored pixels: nll 0
    return total / (target != IGNORED).sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the mean soft Dice coefficient of the classes that occur (Milletari et al., 3DV 2016).

    Numerator and denominator of a class are summed over all labeled pixels of the batch.

    Args:
        logits: (B, K, H, W), any floating dtype.
        target: (B, H, W) integer train ids; 255 marks pixels that do not count.

    Returns:
        Scalar float32 in [0, 1]; 0, still attached to the graph, when every pixel is ignored.
    """
    target = target.long()
    counted = (target != IGNORED).unsqueeze(1)
    probabilities = logits.float().softmax(1) * counted
    truth = torch.zeros_like(probabilities).scatter_(1, torch.where(counted, target.unsqueeze(1), 0), 1.0)
    truth = truth * counted
    both = (probabilities * truth).sum((0, 2, 3))
    sizes = (probabilities**2 + truth).sum((0, 2, 3))
    occurs = truth.sum((0, 2, 3)) > 0
    losses = (1 - (2 * both + SMOOTH) / (sizes + SMOOTH)) * occurs
    return losses.sum() / occurs.sum().clamp(min=1)
