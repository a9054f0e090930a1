"""Four feature maps of strides 4, 8, 16 and 32 from the single-stride maps of a plain ViT."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

PYRAMID_NORM_EPS = 1e-6


class Expand2x2(nn.ConvTranspose2d):
    """Transposed convolution of kernel 2 and stride 2: every pixel becomes a square of four.

    As the squares do not overlap, this is a linear layer of four times as many channels, of which each
    quarter is a pixel of the square. Computed so it is equal to ``nn.ConvTranspose2d`` up to rounding, and
    on a CPU its backward pass takes less than half the time.
    """

    def __init__(self, width: int) -> None:
        """Build the layer, with the weights of ``nn.ConvTranspose2d``, for maps of `width` channels."""
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
    """Resamples four stride-16 maps to strides 4, 8, 16 and 32, keeping their width.

    The first map goes through two transposed convolutions (x4), the second through one (x2),
    the third is kept and the fourth is max-pooled.
    """

    def __init__(self, width: int) -> None:
        """Build the pyramid for maps of `width` channels."""
        super().__init__()
        self.up4 = nn.Sequential(
            Expand2x2(width),
            LayerNorm2d(width, eps=PYRAMID_NORM_EPS),
            nn.GELU(),
            Expand2x2(width),
        )
        self.up2 = Expand2x2(width)
        self.down2 = nn.MaxPool2d(kernel_size=2, stride=2)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Resample the maps.

        Args:
            maps: Four maps (B, C, h, w) of stride 16, h and w at least 2.

        Returns:
            Maps (B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w), (B, C, h // 2, w // 2).
        """
        first, second, third, fourth = maps
        return self.up4(first), self.up2(second), third, self.down2(fourth)
