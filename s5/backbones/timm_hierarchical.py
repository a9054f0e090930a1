"""Any hierarchical model of timm by its name there, such as ConvNeXt, PVT or ResNet."""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from s5.backbones.contract import STRIDES
from s5.backbones.moe import ffns, width_of
from s5.backbones.pyramid import Pyramid
from s5.backbones.timm_models import TimmModel, four_levels, plain_name

TIMM = "timm:"  # of names on the command line
# Arguments with which a model takes images of any size, where timm's model has them.
ANY_SIZE = {"strict_img_size": False, "always_partition": True}
BANDS, BATCH = 3, 2
IMAGE_AXES = 4  # dimensions of the weight of a convolution
# Sizes of images, in multiples of a side, that a model must take for this side to be its divisor.
MULTIPLES = ((1, 1), (1, 2), (3, 1))
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)  # of timm's models


@cache
def hierarchical(name: str) -> TimmModel:
    """Describe a model of timm with maps of several strides; the description is derived from the model.

    Its norms keep timm's epsilon. With `mlp.fc2` layers in its blocks it can have experts. The divisor is 32,
    or the side of its pre-training images if it takes only multiples of that.

    Args:
        name: Name in timm, with or without the tag of its weights, such as `convnext_tiny.fb_in22k`.

    Raises:
        ValueError: It does not have maps of several strides, or its input size is
            fixed.
    """
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
        accepted = inspect.signature(type(whole).__init__).parameters
        options = {option: value for option, value in ANY_SIZE.items() if option in accepted}
        network = _features(name, options)
    side, routable = _divisor(name, network, whole.pretrained_cfg["input_size"][-1])
    widths = [width_of(mlp) for mlp in ffns(network).values()] if routable else []
    return TimmModel(
        f"{TIMM}{name}",
        name,
        stem=_stem(name, network),
        undecayed=_undecayed(whole, network),
        options=options,
        divisor=side,
        min_size=side,
        max_expert_channels=max(widths, default=0),
        drops_paths="drop_path_rate" in accepted,
        own_eps=True,
    )


def _features(name: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - timm has no types
    """Build the feature network, and check that a pyramid can make four strides of its maps."""
    try:
        network: Any = timm.create_model(name, features_only=True, **options).eval()
    except REFUSALS as error:
        raise ValueError(
            f"{TIMM}{name}: timm gives no feature maps of this model ({error}); choose one that works with "
            f"features_only=True"
        ) from error
    strides = network.feature_info.reduction()
    try:
        Pyramid(*four_levels(network.feature_info.channels(), strides)[:2])
        possible = len(set(strides)) > 1
    except ValueError:
        possible = False
    if not possible:
        raise ValueError(
            f"{TIMM}{name} is neither a ViT of timm's modules vision_transformer, deit and eva nor "
            f"hierarchical: of its feature maps of strides {_list(strides)}, none of strides "
            f"{_list(STRIDES)} can be made; choose another model, such as timm:convnext_tiny"
        )
    return network


def _divisor(name: str, network: Any, pretrained: int) -> tuple[int, bool]:  # noqa: ANN401
    """Divisor of the sides of images, and whether images stay in their order up to the FFNs.

    Args:
        name: Name of the model, for the message.
        network: The feature network on the device `meta`.
        pretrained: Side of the images that timm's weights were trained on, in pixels.

    Raises:
        ValueError: There is no divisor.
    """
    batches: list[int] = []
    for mlp in ffns(network).values():
        layer = mlp.get_submodule("fc2")
        layer.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    for side in (STRIDES[-1], pretrained):
        batches.clear()
        if side % STRIDES[-1] == 0 and all(_takes(network, side * h, side * w) for h, w in MULTIPLES):
            return side, set(batches) == {BATCH}
    raise ValueError(
        f"{TIMM}{name} takes neither all multiples of {STRIDES[-1]} pixels nor all of {pretrained}, or "
        f"rounds the sides of its maps: choose a model for any size, such as swin_b or timm:convnext_tiny"
    )


def _takes(network: Any, height: int, width: int) -> bool:  # noqa: ANN401
    """Whether the network makes maps of the promised strides of images of this size in pixels."""
    try:
        maps = network(torch.empty(BATCH, BANDS, height, width, device="meta"))
    except REFUSALS:
        return False
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    sides = [tuple(level.shape[1:3] if last else level.shape[2:]) for level in maps]
    return sides == [(height // stride, width // stride) for stride in network.feature_info.reduction()]


def _stem(name: str, network: nn.Module) -> str:
    """Name of the weight of the first convolution."""
    for parameter, weight in network.named_parameters():
        if weight.ndim == IMAGE_AXES and weight.shape[1] == BANDS:
            return parameter
    raise ValueError(f"{TIMM}{name} has no convolution of red, green and blue: choose another model")


def _undecayed(whole: Any, network: nn.Module) -> tuple[str, ...]:  # noqa: ANN401
    """Names in the feature network of the parameters that timm exempts from weight decay."""
    exempt = {plain_name(name) for name in getattr(whole, "no_weight_decay", tuple)()}
    return tuple(name for name, _ in network.named_parameters() if plain_name(name) in exempt)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
