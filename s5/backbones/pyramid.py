"""Four feature maps of strides 4, 8, 16 and 32 from maps of other strides, such as those of a plain ViT."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from s5.backbones.contract import STRIDES

PYRAMID_NORM_EPS = 1e-6


class Expand2x2(nn.ConvTranspose2d):
    """Transposed convolution of kernel 2 and stride 2: every pixel becomes a square of four.

    As the squares do not overlap, this is a linear layer of four times as many channels, of which each
    quarter is a pixel of the square. Computed so it is equal to `nn.ConvTranspose2d` up to rounding, and
    on a CPU its backward pass takes less than half the time.
    """

    def __init__(self, width: int) -> None:
        """Build the layer, with the weights of `nn.ConvTranspose2d`, for maps of `width` channels."""
        super().__init__(width, width, kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Maps (B, C, 2h, 2w), channels last in memory, of maps (B, C, h, w)."""
        batch, channels, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * channels, channels)
        bias = cast(torch.Tensor, self.bias).repeat(4)
        squares = F.linear(x.permute(0, 2, 3, 1), weight, bias)
        rows = squares.view(batch, height, width, 2, 2, channels).transpose(2, 3)
        return rows.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Resamples maps of any strides to strides 4, 8, 16 and 32, keeping their channels.

    A map that is twice as coarse as wanted goes through a transposed convolution, one four times as coarse
    through two; one that is too fine is max-pooled; one that fits is kept.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Build the pyramid for four maps of these channels and strides in pixels.

        Raises:
            ValueError: A stride is not a power of two times the one wanted, or more than four times.
        """
        super().__init__()
        self.levels: list[str] = []
        for width, stride, wanted in zip(channels, strides, STRIDES, strict=True):
            level, name = _resample(width, stride, wanted)
            # Levels have the names that published weights convert to; those of equal form are told apart.
            name = name if name not in self.levels else f"{name}_{wanted}"
            self.levels.append(name)
            if level is not None:
                self.add_module(name, level)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Resample four maps (B, C, h, w) to strides 4, 8, 16 and 32; sides are rounded down."""
        levels = (getattr(self, name, None) for name in self.levels)
        return tuple(x if level is None else level(x) for level, x in zip(levels, maps, strict=True))


def _resample(width: int, stride: int, wanted: int) -> tuple[nn.Module | None, str]:
    """The layer from a stride to another, and its name; None where they are equal."""
    if stride == wanted:
        return None, "same"
    if stride == 2 * wanted:
        return Expand2x2(width), "up2"
    if stride == 4 * wanted:
        norm = LayerNorm2d(width, eps=PYRAMID_NORM_EPS)
        return nn.Sequential(Expand2x2(width), norm, nn.GELU(), Expand2x2(width)), "up4"
    if stride < wanted and wanted % stride == 0:
        factor = wanted // stride
        return nn.MaxPool2d(kernel_size=factor, stride=factor), f"down{factor}"
    raise ValueError(f"a feature map of stride {stride} cannot be resampled to stride {wanted}")
