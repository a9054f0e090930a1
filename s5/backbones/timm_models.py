"""Backbones from timm with `features_only`: hierarchical networks with maps of several strides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from s5.backbones.contract import STRIDES, Architecture, Backbone, Counts, StateDict
from s5.backbones.lora import LORA_SCALE
from s5.backbones.pyramid import Pyramid

BODY = "body."  # prefix of timm's names in a `TimmBackbone`


def has_own_names(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all names are those of a :class:`TimmBackbone`, which no other project uses."""
    return all(name.startswith((BODY, Backbone.own, LORA_SCALE)) for name in tensors)


@dataclass(frozen=True)
class TimmModel(Architecture):
    """A model of timm.

    Attributes:
        name: Name on the command line and in configurations.
        timm: Name in timm.
        stem: Name of the weight of the first convolution in timm's feature network.
        undecayed: Suffixes of the names of parameters without weight decay, apart from norms.
        options: Further arguments of `timm.create_model`.
        divisor: The sides of an image must be multiples of this number, so that all strides divide them.
        min_size: Minimum side of an image in pixels.
    """

    name: str
    timm: str
    stem: str
    undecayed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    divisor: int = STRIDES[-1]
    min_size: int = STRIDES[-1]
    max_expert_channels = 0

    @property
    def form(self) -> str:  # type: ignore[override]
        """The name in timm."""
        return f"timm's {self.timm}"

    def build(self, img_size: int | tuple[int, int], **options: Any) -> "TimmBackbone":
        """See the base class."""
        return TimmBackbone(self, img_size, **options)

    def create(self, **options: Any) -> Any:  # noqa: ANN401 - timm has no types
        """Create timm's feature network on the default device."""
        with torch.device("cpu"):  # earlier versions of timm cannot build on `meta`
            network = timm.create_model(self.timm, features_only=True, **self.options, **options)
        return network.to(torch.get_default_device())

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether more than half of the model's tensors are present with the right shape."""
        shapes = _shapes(self)
        matching = [tensors[name].shape == shape for name, shape in shapes.items() if name in tensors]
        return sum(matching) > len(shapes) / 2

    def pretrained(self) -> StateDict:
        """See the base class."""
        network = self.create(pretrained=True)
        return {BODY + name: tensor for name, tensor in network.state_dict().items()}


TIMM_MODELS: dict[str, TimmModel] = {
    model.name: model
    for model in (
        TimmModel(
            "swin_t",
            "swin_tiny_patch4_window7_224",
            stem="patch_embed.proj.weight",
            undecayed=("relative_position_bias_table",),
            # Use full and shifted windows in every stage for any image size. Windows and shapes of weights
            # then do not depend on the size that the model is built for.
            options={"strict_img_size": False, "always_partition": True},
        ),
    )
}


class TimmBackbone(Backbone):
    """A feature network of timm, with a pyramid where it lacks one of the four strides.

    The blocks of its stages are the layers for layer decay. Parameters before the blocks of a stage belong to
    its first block, and parameters before the first stage to the stem.
    """

    def __init__(
        self,
        model: TimmModel,
        img_size: int | tuple[int, int] = 512,
        drop_path: float = 0.1,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        """Build the backbone with randomly initialised weights.

        Args:
            model: The timm model.
            img_size: Image size in pixels; it is checked, but has no effect on the weights.
            drop_path: Stochastic depth rate of the last block.
            norm_eps: Epsilon of the layer norms.
            activation_checkpointing: Recompute the stages in the backward pass.
            experts: Without effect, because there are no experts.
            expert_channels: Must be 0 if `experts` is not empty.

        Raises:
            ValueError: The image size is not a multiple of `divisor`, or experts are given.
        """
        if experts and expert_channels:
            raise ValueError(f"{model.name} cannot have experts: omit them, or choose a plain ViT")
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        model.check_size(*sides)
        body = model.create(drop_path_rate=drop_path)
        info = body.feature_info
        channels, strides, levels = _four_levels(info.channels(), info.reduction())
        layers, last = _layers(body)
        super().__init__(model, channels, last + 1, activation_checkpointing)
        self.levels = levels
        body.set_grad_checkpointing(activation_checkpointing)
        self.body = body
        self.pyramid = Pyramid(channels, strides)
        self.stem = BODY + model.stem
        self.undecayed = tuple(BODY + name for name in layers if name.endswith(model.undecayed))
        self._layers = {BODY + name: layer for name, layer in layers.items()}
        for module in body.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps

    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        self.architecture.check_size(*images.shape[-2:])
        maps = self.body(images)
        if self.body.output_fmt == "NHWC":
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        return self.pyramid([maps[level] for level in self.levels])

    def layer_of(self, parameter: str) -> int:
        """See the base class."""
        return self._layers.get(parameter, self.num_layers)


def _four_levels(channels: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Channels, strides and indices of the maps of a feature network that are closest to the four strides."""
    # For each target, the coarsest map that is not coarser, or else the finest map.
    chosen = [
        max((i for i, stride in enumerate(strides) if stride <= wanted), default=0) for wanted in STRIDES
    ]
    return [channels[i] for i in chosen], [strides[i] for i in chosen], chosen


def _blocks(body: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and blocks of all stages, in order."""
    named = []
    for name, stage in body.named_children():
        blocks = getattr(stage, "blocks", stage)
        if isinstance(blocks, nn.Sequential):
            prefix = name if blocks is stage else f"{name}.blocks"
            named += [(f"{prefix}.{index}", block) for index, block in blocks.named_children()]
    return named


def _layers(body: nn.Module) -> tuple[dict[str, int], int]:
    """Layer of every parameter by name, and the number of the last layer."""
    starts = {name: i for i, (name, _) in enumerate(_blocks(body), 1)}
    first: dict[str, int] = {}
    for name, layer in starts.items():
        first.setdefault(name.split(".")[0], layer)
    layers = {}
    for parameter, _ in body.named_parameters():
        block = next((layer for name, layer in starts.items() if parameter.startswith(f"{name}.")), None)
        layers[parameter] = first.get(parameter.split(".")[0], 0) if block is None else block
    return layers, len(starts)


@cache
def _shapes(model: TimmModel) -> dict[str, torch.Size]:
    """Shapes of the weights of a model by name."""
    with torch.random.fork_rng(devices=[]):
        network = model.create()
    return {BODY + name: tensor.shape for name, tensor in network.state_dict().items()}
