"""The interface of a backbone.

To add a backbone, subclass `Backbone` and `Architecture`, and add instances of the latter to the registry in
`s5.backbones`. `tests/backbones/contract.py` tests the guarantees stated here.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from s5.backbones.normalization import IMAGENET, Normalization
from s5.compat.attention import choose_backends
from s5.errors import CheckpointError

STRIDES = (4, 8, 16, 32)
TASK_PART = re.compile(r"\.(?:experts|lora)\.")  # in the names of everything that belongs to one task
StateDict = dict[str, torch.Tensor]
Finetune = Literal["full", "frozen", "lora"]
"""What is trained in a backbone: everything, its pyramid alone, or also LoRA adapters and experts."""
Counts = Mapping[str, int]
"""Number of images of each task, in the order of the batch."""


class Architecture(ABC):
    """Description of a backbone, from which it is built.

    Attributes:
        name: Name on the command line and in configurations.
        divisor: The sides of an input image in pixels must be multiples of this number.
        min_size: Minimum side of an input image in pixels.
        max_expert_channels: Maximum number of channels of an expert; 0 if experts are not supported.
        timm: Name of the timm model whose weights fit; None if there is none.
        form: Description of the architecture in messages, such as its width and depth.
        normalization: Normalisation that images need unless the weights say otherwise.
        timm_names: Whether weights have all tensors of timm's model under its names, with `body.` in front.
        named_weights: Tags of further weights of timm by their name for `--init`.
        side: Side in pixels of the square images that it takes, if it takes no others.
        any_size_graph: Whether `torch.export` can record it for images of any size; if not, `s5.export` asks
            for the size.
    """

    name: str
    divisor: int
    min_size: int
    max_expert_channels: int
    timm: str | None
    form: str
    normalization: Normalization = IMAGENET
    timm_names: bool = False
    named_weights: Mapping[str, str] = MappingProxyType({})
    side: int | None = None
    any_size_graph: bool = False

    @abstractmethod
    def build(
        self,
        img_size: int | tuple[int, int],
        *,
        drop_path: float,
        norm_eps: float,
        activation_checkpointing: bool,
        experts: Sequence[str],
        expert_channels: int,
    ) -> "Backbone":
        """Build the backbone with randomly initialised weights; arguments as for `create_backbone`."""

    @abstractmethod
    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether weights under the backbone's names have this architecture; they may be incomplete."""

    def img_size_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Side of the training images in pixels if it follows from the weights, otherwise None."""
        return None

    @abstractmethod
    def pretrained(self) -> StateDict:
        """Download timm's weights, in a layout of `s5.checkpoints.layouts`.

        Raises:
            CheckpointError: timm has no weights for this architecture.
            OSError: The weights cannot be downloaded.
        """

    def with_weights(self, name: str) -> "Architecture":
        """Return the architecture whose `pretrained` and `normalization` are those of the named weights.

        Args:
            name: `timm`, or a name of `named_weights`.
        """
        return self

    def for_size(self, side: int) -> "Architecture":
        """Return the architecture of a network that is built for images of this side in pixels.

        It is another if networks take images of the size only that they are built for.
        """
        return self

    def check_size(self, height: int, width: int) -> None:
        """Check that images of this size in pixels are supported.

        Raises:
            ValueError: A side is too small or not a multiple of `divisor`, or not the only one.
        """
        if self.side is not None and not height == width == self.side:
            raise ValueError(self._only_size(f"{height}x{width}"))
        if height % self.divisor or width % self.divisor or min(height, width) < self.min_size:
            raise ValueError(
                f"image of {height}x{width} pixels: both sides must be multiples of {self.divisor} and at "
                f"least {self.min_size} for {self.name}; pad or resize the image"
            )

    def padded(self, side: int) -> int:
        """The smallest supported side in pixels that is at least `side`.

        Raises:
            ValueError: The architecture takes smaller images only.
        """
        if self.side is not None and side > self.side:
            raise ValueError(self._only_size(side))
        if self.side is not None:
            return self.side
        return max(-(-side // self.divisor) * self.divisor, self.min_size)

    def _only_size(self, found: int | str) -> str:
        return (
            f"image of {found} pixels: {self.name} takes images of {self.side}x{self.side} pixels only"
            f"; cut larger ones into windows of that size and pad smaller ones"
        )


class Backbone(nn.Module, ABC):
    """Network that maps images to four feature maps of strides 4, 8, 16 and 32.

    Attributes:
        architecture: Description from which it was built.
        out_channels: Channels of the four maps.
        strides: Strides of the four maps in pixels.
        num_layers: Largest number of a layer for layer decay; this layer has the full learning rate.
        experts: Names of the tasks that have an expert; empty for a dense backbone.
        expert_channels: Output channels of an expert; 0 for a dense backbone.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        normalization: Normalisation that the network's input must have.
        chosen_normalization: Whether the user has chosen it, so that loaded weights do not change it.
        adapters: Names of the tasks that have LoRA adapters, see `s5.backbones.lora`.
        finetune: What is trained, see `train_parts`.
        stem: Name of the weight (C, bands, k, k) of the first convolution.
        inert: Names of parameters without effect, which may be missing in checkpoints.
        own: Prefix of the parameters that only this package has; weights of other projects lack all of them.
        undecayed: Names of parameters without weight decay, apart from norms.
    """

    strides: tuple[int, ...] = STRIDES
    stem: str
    inert: tuple[str, ...] = ()
    own: str = "pyramid."
    undecayed: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    finetune: Finetune = "full"

    def __init__(
        self,
        architecture: Architecture,
        out_channels: Sequence[int],
        num_layers: int,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        super().__init__()
        choose_backends()
        self.architecture = architecture
        self.normalization = architecture.normalization
        self.chosen_normalization = False
        self.out_channels = tuple(out_channels)
        self.num_layers = num_layers
        self.activation_checkpointing = activation_checkpointing
        self.experts = tuple(experts) if expert_channels else ()
        self.expert_channels = expert_channels if experts else 0

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return self.architecture.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks with parameters of their own, experts or adapters; `counts` must give them."""
        return self.experts or self.adapters

    def train_parts(self, finetune: Finetune) -> None:
        """Freeze what is not trained.

        Args:
            finetune: `full` freezes nothing. `frozen` freezes everything but what only this package has (the
                pyramid), and also keeps it in evaluation mode. `lora` does not freeze adapters and experts,
                and keeps only batch norms in evaluation mode.
        """
        self.finetune = finetune
        for name, parameter in self.named_parameters():
            if not self._is_trained(name):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode, except for frozen parts, see `train_parts`."""
        super().train(mode)
        if self.finetune == "full":
            return self
        for name, module in self.named_modules():
            fixed = self.finetune == "frozen" or isinstance(module, nn.modules.batchnorm._BatchNorm)
            if name and fixed and not f"{name}.".startswith(self.own):
                module.training = False
        return self

    def _is_trained(self, name: str) -> bool:
        own = self.finetune == "full" or name.startswith(self.own)
        return own or (self.finetune == "lora" and TASK_PART.search(name) is not None)

    @abstractmethod
    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """Compute the four feature maps.

        Args:
            images: (B, 3, H, W), normalised; H and W must pass `Architecture.check_size`. Ordered by task if
                the backbone has experts or adapters.
            counts: Number of images of each task, in the order of the batch. Optional with a single task;
                ignored by a backbone without experts and adapters.

        Returns:
            Maps (B, C, H / s, W / s) for s = 4, 8, 16, 32 (the last rounded down), C of `out_channels`.

        Raises:
            ValueError: H or W is not supported, or `counts` does not match the experts or the batch.
        """

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """Layer of a parameter by its name: 0 for the stem, increasing with depth up to `num_layers`."""

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Compile the blocks with `torch.compile`, if the backbone supports it.

        Args:
            backend: Backend of `torch.compile`; the default needs a C compiler on GPUs, a C++ compiler on
                CPUs.

        Raises:
            ValueError: The backbone does not support compilation.
        """
        raise ValueError(f"{self.name} cannot be compiled")

    def from_library(self, tensors: StateDict) -> StateDict | None:
        """Rename weights of the library that the network is from; None if they are not those of its model."""
        return None

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """Adapt weights of this architecture to the bands, experts and input size of this model.

        Args:
            tensors: Weights under the names of this backbone; unchanged tensors are shared, not copied.
            bands: 1-based numbers of the red, green and blue channels of the images that the weights were
                trained on; None if these are the only ones.

        Returns:
            The adapted tensors, and notes on the changes.

        Raises:
            CheckpointError: The weights cannot be adapted.
        """
        if bands is None:
            return tensors, []
        weight = tensors[self.stem]
        chosen = ", ".join(map(str, bands))
        note = f"red, green and blue are channels {chosen} of {weight.shape[1]} of the patch embedding"
        return tensors | {self.stem: select_bands(weight, bands)}, [note]

    def adopt_normalization(self, trained_with: Normalization) -> list[str]:
        """Use the normalisation that loaded weights were trained with, unless the user has chosen one.

        Returns:
            Notes on a change, or on a choice that differs.
        """
        if trained_with == self.normalization:
            return []
        if self.chosen_normalization:
            return [
                f"the weights were trained on images normalised with {trained_with}, but "
                f"model.normalization is {self.normalization}"
            ]
        self.normalization = trained_with
        return [f"images are normalised with {trained_with}, as the weights were trained"]

    def resolve_counts(self, counts: Counts | None, batch: int) -> Counts | None:
        """Check and return the counts of a batch; None for a backbone without experts.

        Raises:
            ValueError: See the function of the same name.
        """
        return resolve_counts(self.experts, counts, batch) if self.experts else None


def resolve_counts(tasks: Sequence[str], counts: Counts | None, batch: int) -> Counts:
    """Check and return the counts of a batch for these tasks; they may be omitted for a single task.

    Raises:
        ValueError: The counts contain another task, or do not add up to the batch.
    """
    if counts is None and len(tasks) == 1:
        return {tasks[0]: batch}
    if counts is None or not set(counts) <= set(tasks) or sum(counts.values()) != batch:
        raise ValueError(
            f"counts must give the images of {', '.join(tasks)} by name and add up to the batch of {batch}, "
            f"got {counts}"
        )
    return counts


def select_bands(weight: torch.Tensor, bands: Sequence[int]) -> torch.Tensor:
    """Select the weights of some image channels from a checkpoint's first convolution.

    The weights of a channel that is selected k times are divided by k, which preserves the sum over channels.

    Args:
        weight: (C, channels, k, k).
        bands: Channel numbers from 1, in the order red, green, blue.

    Raises:
        CheckpointError: The checkpoint has fewer channels.
    """
    channels = weight.shape[1]
    if max(bands) > channels:
        raise CheckpointError(
            f"init_bands {','.join(map(str, bands))}: the checkpoint's patch embedding has "
            f"{f'{channels} channels, 1 to {channels}' if channels > 1 else 'one channel: 1,1,1 takes it'}"
        )
    repeats = torch.tensor([bands.count(band) for band in bands], dtype=weight.dtype)
    chosen = weight[:, [band - 1 for band in bands]]
    return chosen if len(set(bands)) == len(bands) else chosen / repeats.view(1, -1, 1, 1)
