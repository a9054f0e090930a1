"""Description of a trained model, for loading, prediction and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from s5.backbones import (
    IMAGENET,
    Lora,
    Normalization,
    dense_name,
    expert_width,
    get_architecture,
    has_experts,
    lora_of,
    with_experts,
)
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.loading import load_weights, stored_normalization
from s5.checkpoints.reading import read_checkpoint
from s5.data.label_table import RGB
from s5.errors import CheckpointError, ConfigError
from s5.training.config import NORM_EPS
from s5.training.model import TaskModel

M = TypeVar("M", bound=TaskModel)
IMG_SIZE = 512  # pixels, for networks whose weights do not depend on the image size


class TaskClasses(NamedTuple):
    """Classes of a task.

    Attributes:
        classes: Names by train id or label.
        palette: RGB colours, 0..255, in the same order.
    """

    classes: tuple[str, ...]
    palette: tuple[RGB, ...]


@dataclass(frozen=True)
class ModelSpec(ABC, Generic[M]):
    """Description of a trained model, sufficient to rebuild it and to predict with it.

    There are subclasses for segmentation and detection.

    Attributes:
        backbone: Name of the backbone, such as `vit_b_moe` or `vit_b`.
        img_size: Side of the training images in pixels.
        expert_channels: Channels of the experts; 0 for a dense backbone.
        norm_eps: Epsilon of the norms in the blocks.
        normalization: Normalisation of the images; None is that of the backbone's architecture.
        configured: Whether the spec comes from a configuration or arguments instead of metadata.
    """

    backbone: str
    img_size: int
    expert_channels: int
    norm_eps: float = field(default=NORM_EPS, kw_only=True)
    normalization: Normalization | None = field(default=None, kw_only=True)
    configured: bool = field(default=False, kw_only=True)

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, TaskClasses]:
        """Classes of each task."""

    @abstractmethod
    def only(self, tasks: Sequence[str]) -> "ModelSpec[M]":
        """Return a copy with some of the tasks; with all if none are named.

        Raises:
            ConfigError: A task is unknown; lists the known ones.
        """

    def backbone_meta(self) -> dict[str, Any]:
        """What a weights file says of its backbone."""
        return {
            "backbone": self.backbone,
            "img_size": self.img_size,
            "expert_channels": self.expert_channels,
            "norm_eps": self.norm_eps,
            "normalization": [
                [*values] for values in self.normalization or get_architecture(self.backbone).normalization
            ],
        }

    @abstractmethod
    def build_network(self, lora: Lora | None = None) -> nn.Module:
        """Build the network, randomly initialised; `lora` are the settings of its adapters, if any."""

    @abstractmethod
    def wrap(self, network: nn.Module, dtype: torch.dtype | None) -> M:
        """Wrap a network in its mmengine model; `dtype` is the autocast dtype, None for float32."""

    def build(self, checkpoint: str | Path, device: torch.device, dtype: torch.dtype | None) -> M:
        """Build the model with the weights of a checkpoint, on the device, in evaluation mode.

        Raises:
            CheckpointError: The weights do not fit, or part of a head is missing.
        """
        content = read_checkpoint(checkpoint)
        try:
            lora = lora_of(convert(content, tuple(self.tasks)).backbone)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
        network = self.build_network(lora)
        load_weights(network, content, name=str(checkpoint)).require_heads()
        return self.wrap(network, dtype).to(device).to(memory_format=torch.channels_last).eval()


def meta_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Metadata of a checkpoint; empty if there is none."""
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def options_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the backbone in the metadata of a weight file; earlier versions wrote only some.

    Raises:
        CheckpointError: The normalisation is not one.
    """
    return {
        "norm_eps": meta.get("norm_eps", NORM_EPS),
        "normalization": stored_normalization(meta) or IMAGENET,
    }


def sizes_of(weights: Weights, backbone: str) -> tuple[int, int]:
    """Determine image size and expert channels from converted weights.

    Raises:
        ConfigError: Only one of the backbone's name and the weights has experts.
    """
    if has_experts(backbone) != bool(weights.experts):
        names = {True: ("experts", with_experts(backbone)), False: ("no experts", dense_name(backbone))}
        has, name = names[bool(weights.experts)]
        raise ConfigError(f"backbone {backbone!r}: the checkpoint has {has}; use {name!r}")
    size = get_architecture(backbone).img_size_of(weights.backbone) or IMG_SIZE
    return size, expert_width(weights.backbone)


def refuse_configuration(spec: ModelSpec, checkpoint: Path, config: str | None, options: list[str]) -> None:
    """Reject a configuration on the command line if it is not read because the checkpoint has metadata.

    Raises:
        ConfigError: A configuration is given although it is not needed; names the option.
    """
    given = "--config" if config else "--cfg-options" if options else None
    if given and not spec.configured:
        raise ConfigError(
            f"{given}: {checkpoint} is self-describing, so no configuration is read; omit the option"
        )
