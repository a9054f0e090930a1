"""The segmentation head keeps the contract of heads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from s5.ops.losses import pixel_cross_entropy
from s5.segmentation.segmentor import SegHead
from tests.helpers.head_contract import HeadContract


class TestSegHead(HeadContract):
    def build(self, in_channels: Sequence[int]) -> SegHead:
        return SegHead(in_channels, 3, channels=8)

    def loss(self, head: SegHead, maps: tuple[Tensor, ...]) -> Tensor:
        logits = head(maps)
        return pixel_cross_entropy(logits, torch.randint(0, 3, (len(logits), *logits.shape[2:])))

    def predict(self, head: SegHead, maps: tuple[Tensor, ...]) -> list[Tensor]:
        logits = head(maps)
        assert logits.shape[1:] == (3, *maps[0].shape[2:])
        return [*logits]
