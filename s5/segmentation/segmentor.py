"""Segmentation network: a backbone, and a decoder (mmsegmentation's UPerHead) and classifier per task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import normal_init
from mmseg.models.decode_heads.uper_head import UPerHead
from torch import nn

from s5.backbones import Architecture, Backbone, Counts, create_backbone
from s5.training.config import ModelConfig
from s5.training.model import Features, MultiTaskNetwork, configured_backbone

POOL_SCALES = (1, 2, 3, 6)
CLASSIFIER_INIT_STD = 0.01
DROPOUT = 0.1  # share of decoder channels dropped in training


class SegHead(nn.Module):
    """Segmentation head, from feature maps of strides 4, 8, 16 and 32 to class logits at stride 4."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 256) -> None:
        """Build the head.

        Args:
            in_channels: Channels of the four feature maps.
            num_classes: Number of classes K.
            channels: Channels inside the decoder.
        """
        super().__init__()
        self.num_classes = num_classes
        self.decode_head = UPerHead(
            pool_scales=POOL_SCALES,
            in_channels=list(in_channels),
            in_index=[0, 1, 2, 3],
            channels=channels,
            # UPerHead has its own classifier. It is unused, but kept with one output so that checkpoints can
            # be converted from and to the published layout.
            num_classes=1,
            out_channels=1,
            threshold=0.5,
            dropout_ratio=0.0,
            norm_cfg={"type": "BN", "requires_grad": True},
            loss_decode={"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True},
            align_corners=False,
        )
        self.decode_head.conv_seg.requires_grad_(False)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        normal_init(self.classifier, std=CLASSIFIER_INIT_STD)  # bias 0

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute logits (B, K, H / 4, W / 4) from maps (B, C, H / s, W / s), s = 4, 8, 16, 32."""
        decoded = self.decode_head._forward_feature(features)  # (B, channels, H / 4, W / 4)
        return self.classifier(self.dropout(decoded))


class Segmentor(MultiTaskNetwork):
    """Backbone and segmentation heads."""

    def forward(
        self,
        images: torch.Tensor,
        task: str | None = None,
        perturb: Callable[[Features], Features] | None = None,
    ) -> torch.Tensor:
        """Segment images of one task.

        Args:
            images: (B, 3, H, W), normalised, any size.
            task: Name of the task; optional if there is only one.
            perturb: Change of the feature maps before the head, in training.

        Returns:
            Logits (B, K, H, W), float32.

        Raises:
            ValueError: The task is unknown, or None although there are several.
        """
        task = self.resolve_task(task)
        features = self.encode(images, {task: images.shape[0]})
        if perturb is not None:
            features = perturb(features)
        return self.decode(features, task, images.shape[-2:])

    def forward_tasks(self, images: torch.Tensor, counts: Counts) -> dict[str, torch.Tensor]:
        """Segment a batch of several tasks in one pass of the backbone.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            counts: Number of images of each task, in the order of the batch; tasks without images are absent
                from the result.

        Returns:
            Logits (counts[t], K_t, H, W), float32, by task.
        """
        features = self.features(images, counts)
        return {task: self.decode(part, task, images.shape[-2:]) for task, part in features.items()}

    def forward_all(
        self, images: torch.Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Segment the same images (B, 3, H, W), normalised, of any size, for several tasks, by default all.

        Returns:
            Logits (B, K, H, W), float32, by task.

        Raises:
            ValueError: A task is unknown.
        """
        features = self.features_of_all(images, tasks)
        return {task: self.decode(part, task, images.shape[-2:]) for task, part in features.items()}

    def decode(self, features: Sequence[torch.Tensor], task: str | None, size: Sequence[int]) -> torch.Tensor:
        """Turn feature maps of images of `size` (height, width) into logits (B, K, height, width)."""
        logits = self.heads[self.resolve_task(task)](features)
        height, width = size
        logits = F.interpolate(
            logits.float(), size=self.padded_size(height, width), mode="bilinear", align_corners=True
        )
        return logits[..., :height, :width]


def build_segmentor(
    backbone: str | Architecture,
    tasks: Mapping[str, int],
    img_size: int | tuple[int, int] = 512,
    *,
    channels: int = 256,
    expert_channels: int = 0,
    **options: Any,
) -> Segmentor:
    """Build a backbone with one head per task, randomly initialised.

    Args:
        backbone: Name, see `s5.backbones.list_backbones`, or an `Architecture`.
        tasks: Number of classes by task name.
        img_size: Image size in pixels that the backbone is built for.
        channels: Channels inside the decoders.
        expert_channels: Task-specific channels of the backbone's FFNs; 0 gives a dense backbone.
        options: Further arguments of `s5.backbones.create_backbone`.
    """
    built = create_backbone(
        backbone, img_size, experts=tuple(tasks), expert_channels=expert_channels, **options
    )
    return _with_heads(built, tasks, channels)


def build_network(
    backbone: str,
    tasks: Mapping[str, int],
    crop: int,
    cfg: ModelConfig,
    expert_channels: int = 0,
    crop_key: str = "crop",
) -> Segmentor:
    """Build the segmentor of a configuration, randomly initialised.

    Args:
        backbone: Name of the backbone.
        tasks: Number of classes by task.
        crop: Side of the training crops in pixels.
        cfg: The `model` section of the configuration.
        expert_channels: Channels of the experts; 0 for a dense backbone.
        crop_key: Key of the crop in the configuration, for messages.

    Raises:
        ConfigError: The backbone does not support the crop size, or cannot be compiled.
    """
    built = configured_backbone(backbone, tuple(tasks), crop, cfg, expert_channels, crop_key)
    return _with_heads(built, tasks, cfg.decoder_channels)


def _with_heads(backbone: Backbone, tasks: Mapping[str, int], channels: int) -> Segmentor:
    heads = {name: SegHead(backbone.out_channels, classes, channels) for name, classes in tasks.items()}
    return Segmentor(backbone, heads)
