"""Segmentation head: mmsegmentation's UPerHead, channel dropout and a 1x1 classifier."""

from collections.abc import Sequence

import torch
from mmengine.model import normal_init
from mmseg.models.decode_heads.uper_head import UPerHead
from torch import nn

POOL_SCALES = (1, 2, 3, 6)
CLASSIFIER_INIT_STD = 0.01


class SegHead(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32 to class logits at stride 4."""

    def __init__(self, width: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        """Build the head.

        Args:
            width: Channels of each of the four feature maps.
            num_classes: Number of classes K.
            channels: Channels inside the decoder.
            dropout: Share of decoder channels dropped in training.
        """
        super().__init__()
        self.num_classes = num_classes
        self.decode_head = UPerHead(
            pool_scales=POOL_SCALES,
            in_channels=[width] * 4,
            in_index=[0, 1, 2, 3],
            channels=channels,
            # UPerHead brings a classifier of its own. It is not used, but kept with one output so that
            # published checkpoints convert both ways.
            num_classes=1,
            out_channels=1,
            threshold=0.5,
            dropout_ratio=0.0,
            norm_cfg={"type": "BN", "requires_grad": True},
            loss_decode={"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True},
            align_corners=False,
        )
        self.decode_head.conv_seg.requires_grad_(False)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        normal_init(self.classifier, std=CLASSIFIER_INIT_STD)  # bias 0

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute logits (B, K, H / 4, W / 4) from maps (B, width, H / s, W / s), s = 4, 8, 16, 32."""
        decoded = self.decode_head._forward_feature(features)  # (B, channels, H / 4, W / 4)
        return self.classifier(self.dropout(decoded))
