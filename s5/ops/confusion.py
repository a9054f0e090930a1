"""Confusion matrix and the segmentation scores derived from it."""

from typing import TypedDict

import torch
from torch import Tensor


class Scores(TypedDict, total=False):
    """Scores in [0, 1], NaN where undefined.

    The `*_no_background` entries exist when a background class is named: means over the other classes,
    and the accuracy over pixels whose true class is not the background.
    """

    IoU: list[float]
    F1: list[float]
    Acc: list[float]
    Precision: list[float]
    Recall: list[float]
    mIoU: float
    mF1: float
    mAcc: float
    mPrecision: float
    mRecall: float
    aAcc: float
    mIoU_no_background: float
    mF1_no_background: float
    mAcc_no_background: float
    aAcc_no_background: float


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by true and predicted class, without synchronising with the device.

    Args:
        prediction: Integer tensor of any shape, values in [0, num_classes).
        target: Integer tensor of the same shape, values in [0, num_classes) or `ignore_index`.
        num_classes: Number of classes K.
        ignore_index: Train id of ignored pixels.

    Returns:
        (K, K) int64 on the device of `target`; rows = target, columns = prediction.

    Raises:
        RuntimeError: A target outside the classes that is not `ignore_index` (on CUDA: a device assertion).
    """
    cells = num_classes * num_classes
    target, prediction = target.flatten().long(), prediction.flatten().long()
    counted = target != ignore_index
    index = (target * num_classes + prediction) * counted  # ignored pixels add 0 to the first cell
    counts = torch.zeros(cells, dtype=torch.int64, device=target.device)
    return counts.scatter_add_(0, index, counted.long()).view(num_classes, num_classes)


def scores(matrix: Tensor, background: int | None = None) -> Scores:
    """Compute the scores of a confusion matrix.

    A class absent from target and prediction is NaN and excluded from every mean; a class that is only
    predicted has IoU and F1 0 and is included. Recall and Acc of a class are the same number.

    Args:
        matrix: (K, K) int64, rows = target.
        background: Train id of the background class, if the label table has one.
    """
    counts = matrix.double().cpu()
    hit, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    per_class = {
        "IoU": hit / (true + predicted - hit),  # 0 / 0 = NaN: absent
        "F1": 2 * hit / (true + predicted),
        "Acc": hit / true,
        "Precision": hit / predicted,
        "Recall": hit / true,
    }
    result: dict[str, list[float] | float] = {name: values.tolist() for name, values in per_class.items()}
    result |= {f"m{name}": values.nanmean().item() for name, values in per_class.items()}
    result["aAcc"] = (hit.sum() / true.sum()).item()
    if background is not None:
        kept = torch.arange(len(counts)) != background
        for name in ("IoU", "F1", "Acc"):
            result[f"m{name}_no_background"] = per_class[name][kept].nanmean().item()
        result["aAcc_no_background"] = (hit[kept].sum() / true[kept].sum()).item()
    return Scores(**result)  # type: ignore[typeddict-item]
