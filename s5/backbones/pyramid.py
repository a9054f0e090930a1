"""Resample feature maps, such as those of a plain ViT, to strides 4, 8, 16 and 32."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from s5.backbones.contract import STRIDES

PYRAMID_NORM_EPS = 1e-6


class Expand2x2(nn.ConvTranspose2d):
    """Transposed convolution with kernel 2 and stride 2: every pixel becomes a 2 x 2 square.

    Since the squares do not overlap, this is a linear layer with four times as many output channels. This
    implementation equals `nn.ConvTranspose2d` up to rounding, and its backward pass takes less than half the
    time on a CPU.
    """

    def __init__(self, width: int) -> None:
        """Build the layer, with the weights of `nn.ConvTranspose2d`, for maps with `width` channels."""
        super().__init__(width, width, kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Upsample maps (B, C, h, w) to (B, C, 2h, 2w), channels last in memory."""
        batch, channels, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * channels, channels)
        bias = cast(torch.Tensor, self.bias).repeat(4)
        squares = F.linear(x.permute(0, 2, 3, 1), weight, bias)
        rows = squares.view(batch, height, width, 2, 2, channels).transpose(2, 3)
        return rows.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Resamples maps of any strides to strides 4, 8, 16 and 32, keeping their channels.

    A map with two, four or eight times the target stride goes through one, two or three transposed
    convolutions. Maps with a smaller stride are max-pooled; maps with the target stride are unchanged.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Build the pyramid for four maps with these channels and strides in pixels.

        Raises:
            ValueError: A stride is neither a divisor of the target nor two, four or eight times the target.
        """
        super().__init__()
        self.levels: list[str] = []
        for width, stride, wanted in zip(channels, strides, STRIDES, strict=True):
            level, name = _resample(width, stride, wanted)
            # The names are those of published weights after conversion; equal names get a suffix.
            name = name if name not in self.levels else f"{name}_{wanted}"
            self.levels.append(name)
            if level is not None:
                self.add_module(name, level)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Resample four maps (B, C, h, w) to strides 4, 8, 16 and 32; sides are rounded down."""
        levels = (getattr(self, name, None) for name in self.levels)
        return tuple(x if level is None else level(x) for level, x in zip(levels, maps, strict=True))


def _resample(width: int, stride: int, wanted: int) -> tuple[nn.Module | None, str]:
    """Return the layer that changes the stride, or None if the strides are equal, and its name."""
    if stride == wanted:
        return None, "same"
    if stride == 2 * wanted:
        return Expand2x2(width), "up2"
    if stride in (4 * wanted, 8 * wanted):
        layers: list[nn.Module] = [Expand2x2(width)]
        for _ in range(stride.bit_length() - wanted.bit_length() - 1):
            layers += [LayerNorm2d(width, eps=PYRAMID_NORM_EPS), nn.GELU(), Expand2x2(width)]
        return nn.Sequential(*layers), f"up{stride // wanted}"
    if stride < wanted and wanted % stride == 0:
        factor = wanted // stride
        return nn.MaxPool2d(kernel_size=factor, stride=factor), f"down{factor}"
    raise ValueError(f"a feature map of stride {stride} cannot be resampled to stride {wanted}")
