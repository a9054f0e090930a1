"""What a backbone is to the rest of the package.

A further backbone is a subclass of `Backbone`, and one of `Architecture` whose instances are rows of the
registry in `s5.backbones`. `tests/backbones/contract.py` tests everything that is promised here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from s5.compat.attention import choose_backends
from s5.errors import CheckpointError

STRIDES = (4, 8, 16, 32)
StateDict = dict[str, torch.Tensor]
Counts = Mapping[str, int]
"""Images of each task, in the order in which the tasks follow each other in the batch."""


class Architecture(ABC):
    """A backbone by its name, before it is built.

    Attributes:
        name: Name used on the command line and in configs.
        divisor: Sides of an input image in pixels must be multiples of it.
        min_size: Smallest side of an input image in pixels.
        max_expert_channels: Most channels that an expert may have; 0 if the backbone cannot have experts.
        timm: Name of the model of timm whose weights it takes; None if there is none.
        form: What tells its weights from those of others, for messages.
    """

    name: str
    divisor: int
    min_size: int
    max_expert_channels: int
    timm: str | None
    form: str

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
        """Build the backbone with randomly initialised weights; arguments as of `create_backbone`."""

    @abstractmethod
    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether weights under the names of the backbone are of this architecture, complete or not."""

    def img_size_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Side of the training images in pixels, where weights tell it; by default they do not."""
        return None

    @abstractmethod
    def pretrained(self) -> StateDict:
        """Download timm's weights, under names that `s5.checkpoints.layouts` knows.

        Raises:
            CheckpointError: There are none, or they cannot be downloaded.
        """

    def check_size(self, height: int, width: int) -> None:
        """Check that an image of that size in pixels can be an input.

        Raises:
            ValueError: It cannot.
        """
        if height % self.divisor or width % self.divisor or min(height, width) < self.min_size:
            raise ValueError(
                f"image of {height}x{width} pixels: both sides must be multiples of {self.divisor} and at "
                f"least {self.min_size} for {self.name}; pad or resize the image"
            )

    def padded(self, side: int) -> int:
        """The smallest side of an input, in pixels, that is at least `side`."""
        return max(-(-side // self.divisor) * self.divisor, self.min_size)


class Backbone(nn.Module, ABC):
    """Images to four feature maps of strides 4, 8, 16 and 32.

    Attributes:
        architecture: What it was built from.
        out_channels: Channels of the four maps.
        strides: Strides of the four maps in pixels.
        num_layers: Layers for layer decay; the layer of this number has the full learning rate.
        experts: Names of the tasks with experts of their own; empty for a dense backbone.
        expert_channels: Output channels of an expert; 0 for a dense backbone.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        stem: Name of the weight (C, bands, k, k) of the convolution that sees the image.
        inert: Names of parameters without effect, which weights may lack.
        undecayed: Names of parameters, beside the norms, that weight decay leaves alone.
    """

    strides: tuple[int, ...] = STRIDES
    stem: str
    inert: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()

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
        self.out_channels = tuple(out_channels)
        self.num_layers = num_layers
        self.activation_checkpointing = activation_checkpointing
        self.experts = tuple(experts) if expert_channels else ()
        self.expert_channels = expert_channels if experts else 0

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return self.architecture.name

    @abstractmethod
    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """Compute the four feature maps.

        Args:
            images: (B, 3, H, W), normalised; H and W as `Architecture.check_size` demands. With experts,
                ordered by task.
            counts: Images of each task, in the order of the batch; may be left out for a single expert, and
                for a dense backbone, which ignores it.

        Returns:
            Maps (B, C, H / s, W / s) for s = 4, 8, 16, 32 (the last rounded down), C of `out_channels`.

        Raises:
            ValueError: H or W does not fit, or `counts` does not match the experts or the batch.
        """

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """Layer of a parameter by its name: 0 for the stem, rising with depth up to `num_layers`."""

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Run the blocks through `torch.compile`, where the backbone has blocks that compile.

        Args:
            backend: As for `torch.compile`; the default needs a C compiler on GPUs, a C++ compiler on CPUs.

        Raises:
            ValueError: It has none.
        """
        raise ValueError(f"{self.name} cannot be compiled")

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """Adapt weights of this architecture to this model: to its bands, experts, input size.

        Args:
            tensors: Under the names of this backbone; unchanged tensors are shared, not copied.
            bands: Channels of the weights' images that are red, green and blue, counted from 1; None if they
                have these alone.

        Returns:
            The tensors that fit, and what was changed, for a report.

        Raises:
            CheckpointError: They cannot be adapted.
        """
        if bands is None:
            return tensors, []
        weight = tensors[self.stem]
        chosen = ", ".join(map(str, bands))
        note = f"red, green and blue are channels {chosen} of {weight.shape[1]} of the patch embedding"
        return tensors | {self.stem: select_bands(weight, bands)}, [note]

    def resolve_counts(self, counts: Counts | None, batch: int) -> Counts | None:
        """Check the counts of a batch; None for a dense backbone.

        Raises:
            ValueError: They name a task without expert, or do not add up to the batch.
        """
        if not self.experts:
            return None
        if counts is None and len(self.experts) == 1:
            return {self.experts[0]: batch}
        if counts is None or not set(counts) <= set(self.experts) or sum(counts.values()) != batch:
            raise ValueError(
                f"counts must give the images of {', '.join(self.experts)} by name and add up to the batch "
                f"of {batch}, got {counts}"
            )
        return counts


def select_bands(weight: torch.Tensor, bands: Sequence[int]) -> torch.Tensor:
    """The first convolution of a checkpoint, for some of the channels of its images.

    A channel that is named k times is divided by k, so that an image of equal channels gives what it gave.

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
