"""Prediction of whole images and of images of any size in sliding windows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

Prepare = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Prediction:
    """Classes of pixels.

    Attributes:
        labels: Most probable class of each pixel (train ids), uint8, (H, W) or (B, H, W).
        confidence: Its probability, float32, 0 to 1, same shape.
    """

    labels: torch.Tensor
    confidence: torch.Tensor


@torch.no_grad()
def predict_whole(model: nn.Module, images: torch.Tensor, task: str | None = None) -> Prediction:
    """Segment whole images in one pass.

    The caller puts the model into evaluation mode and chooses the precision.

    Args:
        model: A `Segmentor`.
        images: (B, 3, H, W), normalised, on the model's device.
        task: Which head; may be left out if there is only one.

    Returns:
        Labels and confidence (B, H, W) on the model's device.
    """
    return _most_probable(model(images, task).float().softmax(1))


@torch.no_grad()
def predict_slide(
    model: nn.Module,
    image: np.ndarray | torch.Tensor,
    crop: int = 512,
    stride: int | None = None,
    *,
    task: str | None = None,
    prepare: Prepare | None = None,
    batch_size: int = 4,
) -> Prediction:
    """Segment one image of any size in overlapping windows; arguments as in `slide_bands`.

    Returns:
        Labels and confidence (H, W) on the CPU.
    """
    bands = slide_bands(model, image, crop, stride, task=task, prepare=prepare, batch_size=batch_size)
    parts = [_most_probable(band.unsqueeze(0)) for _, band in bands]
    labels = torch.cat([part.labels[0].cpu() for part in parts])
    return Prediction(labels, torch.cat([part.confidence[0].cpu() for part in parts]))


@torch.no_grad()
def slide_bands(
    model: nn.Module,
    image: np.ndarray | torch.Tensor,
    crop: int = 512,
    stride: int | None = None,
    *,
    task: str | None = None,
    prepare: Prepare | None = None,
    batch_size: int = 4,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Compute class probabilities of one image of any size, a band of rows after the other.

    Every window is computed once; the last one of a row or column is shifted inside the image. The
    softmax probabilities of overlapping windows are averaged with equal weights. Only the rows of one
    window are held in memory: K * crop * W numbers, however high the image is.

    Args:
        model: A `Segmentor`, in evaluation mode.
        image: (H, W, 3) array, or (3, H, W) tensor; uint8 needs `prepare`.
        crop: Side of a window in pixels; an image smaller than that is one window.
        stride: Step between windows in pixels, 1 to `crop`; two thirds of `crop` if left out.
        task: Which head; may be left out if there is only one.
        prepare: Turns a batch of windows (B, 3, h, w) of `image` into normalised ones, on the model's
            device; left out, the windows go to the model as they are.
        batch_size: Windows in one pass.

    Yields:
        First row of the band, and probabilities (K, rows, W), float32, on the model's device.

    Raises:
        ValueError: `stride` is out of range, or `image` is uint8 without `prepare`.
    """
    stride = max(crop * 2 // 3, 1) if stride is None else stride
    if not 1 <= stride <= crop:
        raise ValueError(f"stride must be between 1 and the crop of {crop} pixels, got {stride}")
    tensor = torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) else image
    if prepare is None and not tensor.is_floating_point():
        raise ValueError(f"image is {tensor.dtype}: give a normalised image, or `prepare` to normalise it")

    device = next(model.parameters()).device
    height, width = tensor.shape[-2:]
    tops, lefts = window_starts(height, crop, stride), window_starts(width, crop, stride)
    column_counts = _coverage(lefts, crop, width).to(device)
    pending = torch.empty(0)  # sums of probabilities of rows that further windows may reach
    row_counts = torch.empty(0)
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        rows = tensor[:, top : top + crop]
        sums = _window_row(model, rows, lefts, crop, task, prepare, batch_size, device)  # (K, rows, W)
        counts = torch.ones(rows.shape[1], device=device)
        overlap = row_counts.numel()
        if overlap:
            sums[:, :overlap] += pending
            counts[:overlap] += row_counts
        done = next_top - top
        yield top, sums[:, :done] / (counts[:done, None] * column_counts)
        pending, row_counts = sums[:, done:], counts[done:]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Place windows of `crop` pixels along `length` pixels: all inside, no two alike, no gap."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def _coverage(starts: list[int], crop: int, length: int) -> torch.Tensor:
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + crop] += 1
    return counts


def _window_row(
    model: nn.Module,
    rows: torch.Tensor,
    lefts: list[int],
    crop: int,
    task: str | None,
    prepare: Prepare | None,
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """Sum the probabilities (K, rows, W) of the windows that share their rows."""
    sums = None
    for first in range(0, len(lefts), batch_size):
        batch = lefts[first : first + batch_size]
        windows = torch.stack([rows[..., left : left + crop] for left in batch]).to(device)
        logits = model(windows if prepare is None else prepare(windows), task)
        probabilities = logits.float().softmax(1)
        if sums is None:
            sums = probabilities.new_zeros(probabilities.shape[1], *rows.shape[-2:])
        for left, window in zip(batch, probabilities, strict=True):
            sums[..., left : left + crop] += window
    assert sums is not None
    return sums


def _most_probable(probabilities: torch.Tensor) -> Prediction:
    confidence, labels = probabilities.max(dim=1)
    return Prediction(labels.to(torch.uint8), confidence)
