"""Photometric augmentation, batched on the device with separate parameters for each image.

The operations are those of torchvision's functionals on float images, in the fixed order of
`PHOTOMETRIC_FIELDS` (torchvision's `ColorJitter` draws an order per image). Nothing synchronises with a CUDA
device. On a CPU, images are processed one at a time, which keeps them in the cache, and operations with
neutral parameters are skipped.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOMETRIC_FIELDS = ("brightness", "contrast", "saturation", "hue", "gray", "blur_sigma")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow


def apply_photometric(images: Tensor, params: Tensor, max_sigma: float = 2.0) -> Tensor:
    """Apply brightness, contrast, saturation, hue, grayscale and Gaussian blur, in this order.

    Args:
        images: (B, 3, H, W) float32 RGB in [0, 1]; H and W above 3 `max_sigma`.
        params: (B, 6) float32 on the same device, in the order of `PHOTOMETRIC_FIELDS`: three factors
            (1 = neutral), the hue shift in turns within [-0.5, 0.5], 1 for grayscale, the blur's sigma in
            pixels (0 = none).
        max_sigma: Largest possible sigma in pixels; determines the size of the blur kernel.

    Returns:
        (B, 3, H, W) float32 in [0, 1]; an image with neutral values (1, 1, 1, 0, 0, 0) is bitwise unchanged.
    """
    parts = 1 if images.is_cuda else max(len(images), 1)
    pairs = zip(images.tensor_split(parts), params.tensor_split(parts), strict=True)
    return torch.cat([_apply(part.contiguous(), rows, max_sigma) for part, rows in pairs])


def _apply(images: Tensor, params: Tensor, max_sigma: float) -> Tensor:
    brightness, contrast, saturation, hue, gray, sigma = params.unbind(1)
    if _acts(brightness, 1):
        images = adjust_brightness(images, brightness)
    if _acts(contrast, 1):
        images = adjust_contrast(images, contrast)
    if _acts(saturation, 1):
        images = adjust_saturation(images, saturation)
    if _acts(hue, 0):
        images = adjust_hue(images, hue)
    if _acts(gray, 0):
        images = adjust_saturation(images, 1 - gray)
    return gaussian_blur(images, sigma, max_sigma) if _acts(sigma, 0) else images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies by a factor per image (B,) and clips."""
    return (images * _column(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of the image by a factor per image (B,): 0 = flat grey, 1 = unchanged."""
    return _blend(images, luma(images).mean((1, 2, 3), keepdim=True), _column(factor))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma by a factor per image (B,): 0 = grayscale, 1 = unchanged."""
    return _blend(images, luma(images), _column(factor))


def luma(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of RGB images."""
    red, green, blue = images.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the HSV hue by a shift per image (B,) in turns; value and saturation do not change.

    HSV is piecewise linear, so the conversion and its inverse combine into one branch-free formula; branches
    are slow on a CPU. In sixths of a turn, the distance of the hue from red is 1 + (G + B - R - m) / C,
    towards green where G > B; M, m and C are the largest, the smallest and the range of the channels. A
    channel whose own hue has distance d from the new hue becomes M - C clip(d - 1, 0, 1).
    """
    red, green, blue = images.split(1, 1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    from_red = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp(min=1e-20)).add_(1)
    hue = from_red.copysign_(green - blue).add_(_column(shift), alpha=6)
    hue = hue.sub_(torch.round(hue / 6), alpha=6)  # in [-3, 3], red = 0, green = 2, blue = -2
    distance = torch.cat([hue, hue - 2, hue + 2], 1).abs_().sub_(3).abs_().sub_(3).neg_()
    turned = largest - distance.sub_(1).clamp_(0, 1).mul_(chroma)
    return torch.where(_column(shift) == 0, images, turned)


def gaussian_blur(images: Tensor, sigma: Tensor, max_sigma: float = 2.0) -> Tensor:
    """Blur with a sigma per image (B,) in pixels; borders are reflected, the kernel ends at 3 `max_sigma`."""
    radius = math.ceil(3 * max_sigma)
    offset = torch.arange(radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, taps), centre first
    kernel = kernel / (2 * kernel.sum(1, keepdim=True) - 1)
    padded = F.pad(images, [radius] * 4, mode="reflect")
    return _filter(_filter(padded, kernel, -1), kernel, -2)


def _filter(images: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Symmetric filter along one axis. Shifted sums, because depthwise convolution is far slower on a CPU."""
    centre, *sides = (_column(weight) for weight in kernel.unbind(1))
    radius = len(sides)
    length = images.shape[dim] - 2 * radius
    out = images.narrow(dim, radius, length) * centre
    pair = torch.empty_like(out)
    for reach, weight in enumerate(sides, 1):
        before, after = (images.narrow(dim, radius + step, length) for step in (-reach, reach))
        out.addcmul_(torch.add(before, after, out=pair), weight)
    return out


def to_unit(images: Tensor) -> Tensor:
    """Convert uint8 [0, 255] to float32 [0, 1]; images in floating point are in [0, 1] already."""
    return images if images.is_floating_point() else images.float() / 255


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of every channel.

    Args:
        images: (B, 3, H, W) uint8 in [0, 255] or floating in [0, 1].
        mean: Mean per channel of images in [0, 1].
        std: Standard deviation per channel of images in [0, 1].

    Returns:
        (B, 3, H, W) float32.
    """
    unit = 1.0 if images.is_floating_point() else 255.0
    shift = _channels([m * unit for m in mean], images.device)
    scale = _channels([1 / (s * unit) for s in std], images.device)
    return (images - shift).mul_(scale)


def _acts(values: Tensor, neutral: float) -> bool:
    """Whether any image may change; always true on CUDA, where looking would synchronise with the device."""
    return values.is_cuda or bool((values != neutral).any())


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).add_(other * (1 - factor)).clamp_(0, 1)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    """A constant (3, 1, 1), filled on the device: copying it from the host would synchronise with it."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
