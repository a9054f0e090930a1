"""Four feature maps of strides 4, 8, 16 and 32 from the single-stride maps of a plain ViT."""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn

PYRAMID_NORM_EPS = 1e-6


class Pyramid(nn.Module):
    """Resamples four stride-16 maps to strides 4, 8, 16 and 32, keeping their width.

    The first map goes through two transposed convolutions (x4), the second through one (x2),
    the third is kept and the fourth is max-pooled.
    """

    def __init__(self, width: int) -> None:
        """Build the pyramid for maps of `width` channels."""
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
            LayerNorm2d(width, eps=PYRAMID_NORM_EPS),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
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
