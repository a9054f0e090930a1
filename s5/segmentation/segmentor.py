"""Segmentation head: mmsegmentation's UPerHead, channel dropout and a 1x1 classifier."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import normal_init
from mmseg.models.decode_heads.uper_head import UPerHead
from torch import nn

from s5.backbones.variants import Variant
from s5.backbones.vit import ViT
from s5.training.config import ModelConfig

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


class Segmentor(nn.Module):
    """Backbone and segmentation heads.

    Attributes:
        backbone: The encoder, shared by all tasks.
        heads: One head per task, in the order of the batch.
    """

    def __init__(self, backbone: ViT, heads: Mapping[str, SegHead]) -> None:
        """Join a backbone and its heads.

        Raises:
            ValueError: The backbone has experts for other tasks than there are heads.
        """
        super().__init__()
        if backbone.experts and tuple(heads) != backbone.experts:
            raise ValueError(
                f"the backbone has experts for {', '.join(backbone.experts)}, "
                f"but the heads are for {', '.join(heads)}"
            )
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the batch."""
        return tuple(self.heads)

    def forward(self, images: torch.Tensor, task: str | None = None) -> torch.Tensor:
        """Segment images of one task.

        Args:
            images: (B, 3, H, W), normalised, any size.
            task: Name of the task; may be left out if there is only one.

        Returns:
            Logits (B, K, H, W), float32.

        Raises:
            ValueError: Unknown task, or none given where there are several.
        """
        task = self._resolve_task(task)
        counts = [len(images) if name == task else 0 for name in self.heads]
        return self.decode(self.encode(images, counts), task, images.shape[-2:])

    def forward_tasks(self, images: torch.Tensor, counts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Segment a batch of several tasks in one pass of the backbone.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            counts: Images of each task, in the order of `tasks`; tasks with 0 images are left out of
                the result.

        Returns:
            Logits (counts[t], K_t, H, W) by task name.
        """
        features = self.encode(images, counts)
        parts = zip(*(feature.split(list(counts)) for feature in features), strict=True)
        return {
            task: self.decode(part, task, images.shape[-2:])
            for task, count, part in zip(self.tasks, counts, parts, strict=True)
            if count
        }

    def forward_all(
        self, images: torch.Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Segment the same images for several tasks.

        A dense backbone computes its feature maps once for all heads; one with experts goes through once with
        the images repeated for every task.

        Args:
            images: (B, 3, H, W), normalised, any size.
            tasks: Names of the tasks; all if left out.

        Returns:
            Logits (B, K, H, W), float32, by task.

        Raises:
            ValueError: Unknown task.
        """
        wanted = {self._resolve_task(task) for task in (self.tasks if tasks is None else tasks)}
        if self.backbone.experts:
            counts = [len(images) if task in wanted else 0 for task in self.tasks]
            return self.forward_tasks(torch.cat([images] * len(wanted)), counts)
        features = self.encode(images)
        return {task: self.decode(features, task, images.shape[-2:]) for task in self.tasks if task in wanted}

    def encode(self, images: torch.Tensor, counts: Sequence[int] | None = None) -> tuple[torch.Tensor, ...]:
        """Pad the images to whole patches and compute the backbone's feature maps."""
        height, width = images.shape[-2:]
        padded_height, padded_width = self._padded_size(height, width)
        if (padded_height, padded_width) != (height, width):
            images = F.pad(images, (0, padded_width - width, 0, padded_height - height))
        return self.backbone(images, counts if self.backbone.experts else None)

    def decode(self, features: Sequence[torch.Tensor], task: str | None, size: Sequence[int]) -> torch.Tensor:
        """Turn feature maps of images of `size` (height, width) into logits (B, K, height, width)."""
        logits = self.heads[self._resolve_task(task)](features)
        height, width = size
        logits = F.interpolate(
            logits.float(), size=self._padded_size(height, width), mode="bilinear", align_corners=True
        )
        return logits[..., :height, :width]

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        patch = self.backbone.variant.patch
        # The coarsest level halves the grid, so that it needs two patches per side.
        padded_height, padded_width = (max(-(-side // patch), 2) * patch for side in (height, width))
        return padded_height, padded_width

    def _resolve_task(self, task: str | None) -> str:
        if task is None and len(self.heads) == 1:
            return self.tasks[0]
        if task is None or task not in self.heads:
            raise ValueError(f"unknown task {task!r}; this model's tasks: {', '.join(self.heads)}")
        return task


def build_segmentor(
    backbone: str | Variant,
    tasks: Mapping[str, int],
    img_size: int | tuple[int, int] = 512,
    *,
    channels: int = 256,
    dropout: float = 0.1,
    expert_channels: int = 0,
    drop_path: float = 0.1,
    norm_eps: float = 1e-5,
    activation_checkpointing: bool = False,
) -> Segmentor:
    """Build a backbone with one head per task, randomly initialised.

    Args:
        backbone: Name in `VARIANTS`, or a `Variant`.
        tasks: Number of classes by task name, in the order of the batch.
        img_size: Image size in pixels of the positional embedding.
        channels: Channels inside the decoders.
        dropout: Dropout rate before the classifiers.
        expert_channels: Task-specific channels of the backbone's FFNs; 0 gives a dense backbone.
        drop_path: Stochastic depth rate of the last block.
        norm_eps: Epsilon of the norms in the blocks.
        activation_checkpointing: Recompute the blocks in the backward pass to save memory.
    """
    experts = tuple(tasks) if expert_channels else ()
    vit = ViT(backbone, img_size, drop_path, norm_eps, activation_checkpointing, experts, expert_channels)
    width = vit.variant.width
    heads = {name: SegHead(width, classes, channels, dropout) for name, classes in tasks.items()}
    return Segmentor(vit, heads)


def build_network(
    backbone: str, tasks: dict[str, int], crop: int, cfg: ModelConfig, expert_channels: int = 0
) -> Segmentor:
    """The segmentor of a configuration.

    Args:
        backbone: name of the variant.
        tasks: number of classes by task.
        crop: side of the training crops in pixels, for the positional embedding.
        cfg: the configuration's ``model``.
        expert_channels: 0 for a dense backbone.
    """
    segmentor = build_segmentor(
        backbone,
        tasks,
        img_size=crop,
        channels=cfg.decoder_channels,
        drop_path=cfg.drop_path,
        norm_eps=cfg.norm_eps,
        expert_channels=expert_channels,
        activation_checkpointing=cfg.activation_checkpointing,
    )
    if cfg.compile:
        segmentor.backbone.compile_blocks()
    return segmentor
