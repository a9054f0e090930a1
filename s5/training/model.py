"""Base classes of all models: a backbone with a head per task, autocast and losses."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from s5.backbones import (
    Backbone,
    Counts,
    Finetune,
    Lora,
    Normalization,
    add_adapters,
    create_backbone,
    get_architecture,
)
from s5.compat.precision import autocast
from s5.errors import ConfigError
from s5.ops.photometric import normalize

logger = logging.getLogger(__name__)

Features = tuple[Tensor, ...]  # (B, C, H / s, W / s) for s = 4, 8, 16, 32


class MultiTaskNetwork(nn.Module):
    """A backbone that runs once on the images of all tasks, and a head per task for its slice of the batch.

    Attributes:
        backbone: The encoder, shared by all tasks.
        heads: One head per task.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        """Join a backbone and its heads.

        Raises:
            ValueError: The experts or adapters of the backbone and the heads are for different tasks.
        """
        super().__init__()
        if backbone.tasks and tuple(heads) != backbone.tasks:
            raise ValueError(
                f"the backbone has {'experts' if backbone.experts else 'adapters'} for "
                f"{', '.join(backbone.tasks)}, but the heads are for {', '.join(heads)}"
            )
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.heads)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def encode(self, images: Tensor, counts: Counts | None = None) -> Features:
        """Compute the feature maps of images of any size, padded on the right and at the bottom as needed.

        Args:
            images: (B, 3, H, W), normalised; ordered by task if the backbone has experts or adapters.
            counts: Number of images of each task, in the order of the batch.

        Raises:
            ValueError: The backbone takes smaller images only.
        """
        height, width = images.shape[-2:]
        padded_height, padded_width = self.padded_size(height, width)
        if (padded_height, padded_width) != (height, width):
            images = F.pad(images, (0, padded_width - width, 0, padded_height - height))
        return self.backbone(images, counts)

    def features(self, images: Tensor, counts: Counts) -> dict[str, Features]:
        """Compute the feature maps of the images of every task in one pass of the backbone.

        Args:
            images: (B, 3, H, W), normalised, ordered by task.
            counts: Number of images of each task, in the order of the batch. Tasks without images are absent
                from the result.

        Raises:
            ValueError: A task is unknown.
        """
        for task in counts:
            self.resolve_task(task)
        levels = [level.split(list(counts.values())) for level in self.encode(images, counts)]
        slices = zip(counts.items(), zip(*levels, strict=True), strict=True)
        return {task: part for (task, count), part in slices if count}

    def features_of_all(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Features]:
        """Compute the feature maps of the same images for several tasks.

        A dense backbone computes them once and shares them; a backbone with experts or adapters runs on a
        batch that repeats the images for every task.

        Args:
            images: (B, 3, H, W), normalised.
            tasks: Names of the tasks; all by default.

        Raises:
            ValueError: A task is unknown.
        """
        named = {self.resolve_task(task) for task in (self.tasks if tasks is None else tasks)}
        wanted = [task for task in self.tasks if task in named]
        if self.backbone.tasks:
            repeated = torch.cat([images] * len(wanted))
            return self.features(repeated, dict.fromkeys(wanted, images.shape[0]))
        return dict.fromkeys(wanted, self.encode(images))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after padding for the backbone."""
        architecture = self.backbone.architecture
        return architecture.padded(height), architecture.padded(width)

    def resolve_task(self, task: str | None) -> str:
        """Return `task`, or the model's only task if it is None.

        Raises:
            ValueError: The task is unknown, or None although the model has several.
        """
        if task is None and len(self.heads) == 1:
            return self.tasks[0]
        if task is None or task not in self.heads:
            raise ValueError(f"unknown task {task!r}; this model's tasks: {', '.join(self.heads)}")
        return task


class BackboneSettings(Protocol):
    """Backbone settings in the `model` section of a configuration."""

    @property
    def drop_path(self) -> float: ...  # noqa: D102
    @property
    def norm_eps(self) -> float: ...  # noqa: D102
    @property
    def activation_checkpointing(self) -> bool: ...  # noqa: D102
    @property
    def compile(self) -> bool: ...  # noqa: D102
    @property
    def normalization(self) -> Normalization | None: ...  # noqa: D102
    @property
    def finetune(self) -> Finetune: ...  # noqa: D102
    @property
    def lora(self) -> Lora: ...  # noqa: D102


def configured_backbone(
    name: str, tasks: Sequence[str], size: int, cfg: BackboneSettings, expert_channels: int, size_key: str
) -> Backbone:
    """Create the backbone that a configuration describes.

    Args:
        name: Name of the backbone.
        tasks: Names of the tasks.
        size: Side of the training images in pixels.
        cfg: The `model` section of the configuration.
        expert_channels: Channels of the experts, see `s5.training.command.expert_channels`.
        size_key: Key of the size in the configuration, for messages.

    Raises:
        ConfigError: The backbone does not support this image size or these adapters, or cannot be compiled.
    """
    architecture = get_architecture(name)
    fitting = architecture.side or architecture.padded(size)
    if size != fitting:
        step, smallest = architecture.divisor, architecture.min_size
        every = f"whose sides are a multiple of {step} and at least {smallest} pixels"
        only = f"of {architecture.side}x{architecture.side} pixels only"
        raise ConfigError(
            f"{size_key} = {size}: {name} takes images {only if architecture.side else every}; "
            f"set it to {fitting}"
        )
    backbone = create_backbone(
        architecture,
        size,
        drop_path=cfg.drop_path,
        norm_eps=cfg.norm_eps,
        activation_checkpointing=cfg.activation_checkpointing,
        experts=tasks,
        expert_channels=expert_channels,
        normalization=cfg.normalization,
    )
    if cfg.finetune == "lora":
        try:
            add_adapters(backbone, tasks, cfg.lora)
        except ValueError as error:
            raise ConfigError(f"model.lora.{error}") from None
    else:
        backbone.train_parts(cfg.finetune)
    if cfg.finetune == "frozen" and backbone.experts:
        logger.warning(
            "model.finetune = frozen also freezes the experts of %s, which are equal if they come from a "
            "dense checkpoint: choose the dense backbone, or model.finetune=lora, which trains them",
            name,
        )
    if cfg.compile:
        try:
            backbone.compile_blocks()
        except ValueError as error:
            raise ConfigError(f"model.compile: {error}; set model.compile=false") from None
    return backbone


class TaskModel(BaseModel):
    """mmengine model around a :class:`MultiTaskNetwork`.

    Args:
        dtype: Autocast dtype (see :func:`s5.compat.precision.resolve_precision`); None is float32.

    Attributes:
        iteration: Number of the training step, counted from 0; set by the training loop.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__(BaseDataPreprocessor(non_blocking=True))
        self.iteration = 0
        self.dtype = dtype

    @property
    @abstractmethod
    def network(self) -> MultiTaskNetwork:
        """The network, whose state dict is saved and loaded as weights."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.device

    @property
    def normalization(self) -> Normalization:
        """Normalisation of the images."""
        return self.network.backbone.normalization

    def autocast(self) -> AbstractContextManager:
        """Autocast context of the network; one context around several passes casts the weights only once."""
        return autocast(self.device, self.dtype)

    def after_step(self, skipped: Tensor) -> None:
        """Update state derived from the weights after every optimizer step; does nothing by default.

        Args:
            skipped: Bool scalar on the device; true if the step was skipped, so that nothing may change.
        """

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, which is `loss` alone, and all values to log.

        mmengine would sum all values whose name contains "loss".
        """
        values = {n: v.detach() if isinstance(v, Tensor) else v for n, v in losses.items()}
        return losses["loss"], values

    def _prepare(self, images: Tensor) -> Tensor:
        return normalize(images, *self.normalization)
