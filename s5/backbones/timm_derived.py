"""Any model of timm by its name there that gives feature maps, such as ConvNeXt, PVT, ResNet or BEiT.

Its description is derived from the model on the device `meta`: strides, sizes of images, experts, layers.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from s5.backbones.contract import STRIDES
from s5.backbones.moe import ffns, width_of
from s5.backbones.pyramid import Pyramid
from s5.backbones.timm_models import BANDS, PATCH, TimmModel, four_levels, plain_name

TIMM = "timm:"  # of names on the command line
# Arguments with which a model takes images of any size, where timm's model has them.
ANY_SIZE = {"strict_img_size": False, "always_partition": True}
DYNAMIC = {"dynamic_img_size": True}  # the same of ViTs
BATCH = 2
IMAGE_AXES = 4  # dimensions of the weight of a convolution
# Sizes of images, in multiples of a side, that a model must take for this side to be its divisor.
MULTIPLES = ((1, 1), (1, 2), (3, 1))
REFUSALS = (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)  # of timm
OTHERS = "choose another model, such as timm:vit_base_patch16_224, timm:beit_base_patch16_224 or swin_b"


# Arguments with which some models get patches that the pyramid can use, or embed them by convolution.
STRUCTURES: tuple[dict[str, Any], ...] = ({}, {"patch_size": PATCH}, {"embed_proj_type": "conv"})


@cache
def derive(name: str, **options: Any) -> TimmModel:  # noqa: ANN401 - of timm
    """Describe a model of timm with feature maps.

    Its norms keep timm's epsilon. With `mlp.fc2` layers in its blocks it can have experts. It takes images of
    any size if timm's model can. If not, a network is built for one size, or has the size of the pre-training
    images. The divisor of sizes is 32, or else the side of these images, or 64.

    Args:
        name: Name in timm, with or without the tag of its weights, such as `convnext_tiny.fb_in22k`.
        options: Further arguments of `timm.create_model`, such as a smaller depth.

    Raises:
        ValueError: timm has no maps of it from which strides 4, 8, 16 and 32 can be made.
    """
    reason: ValueError | None = None
    for structure in STRUCTURES:
        try:
            # Gradients are traced, also where a caller loads a model in inference mode.
            with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
                return _derive(name, {**structure, **options})
        except ValueError as error:
            reason = reason or error
    raise ValueError(f"{TIMM}{name}: {reason}; {OTHERS}") from reason


def _derive(name: str, options: dict[str, Any]) -> TimmModel:
    row = TimmModel(f"{TIMM}{name}", name, stem="", options=options, own_eps=True)
    row = replace(row, out_indices=_out_indices(row))
    whole: Any = timm.create_model(name, **options)
    accepted = inspect.signature(type(whole).__init__).parameters
    row = replace(row, drops_paths="drop_path_rate" in accepted)
    row = _with_sizes(row, accepted, whole.pretrained_cfg["input_size"][-1])
    network = row.for_size(row.min_size).create().eval()
    routable, inert = _traced(network, row.min_size)
    widths = [width_of(mlp) for mlp in ffns(network).values()] if routable else []
    return replace(
        row,
        stem=_stem(network),
        undecayed=_undecayed(whole, network),
        max_expert_channels=max(widths, default=0),
        inert=inert,
    )


def _out_indices(row: TimmModel) -> tuple[int, ...] | None:
    """Choose the maps, and check that a pyramid can make four strides of them.

    Returns:
        Indices of four evenly spaced blocks if all have one stride, of all maps if timm's choice is of one
        stride only; else None for timm's choice.
    """
    try:
        network: Any = row.create()
    except REFUSALS as error:
        raise ValueError(f"timm gives no feature maps of this model ({error})") from error
    chosen = None
    if len(set(network.feature_info.reduction())) == 1 and hasattr(network, "model"):
        every = [level["reduction"] for level in network.model.feature_info]
        depth = len(every)
        one_stride = len(set(every)) == 1
        quarters = (max(depth * part // 4 - 1, 0) for part in (1, 2, 3, 4))
        chosen = tuple(quarters) if one_stride else tuple(range(depth))
        network = replace(row, out_indices=chosen).create()
    strides = network.feature_info.reduction()
    try:
        Pyramid(*four_levels(network.feature_info.channels(), strides)[:2])
    except ValueError:
        raise ValueError(
            f"of its feature maps of strides {_list(strides)}, none of strides {_list(STRIDES)} can be made"
        ) from None
    return chosen


def _with_sizes(row: TimmModel, accepted: Any, pretrained: int) -> TimmModel:  # noqa: ANN401
    """Find the sizes of images of a model.

    Args:
        row: The model.
        accepted: Names of the arguments of timm's model.
        pretrained: Side of the images that timm's weights were trained on, in pixels.

    Raises:
        ValueError: There are none.
    """
    coarsest = STRIDES[-1]
    sides = [side for side in (coarsest, pretrained, 2 * coarsest) if side % coarsest == 0]
    choices = DYNAMIC if "strict_img_size" not in accepted else ANY_SIZE
    options = {option: value for option, value in choices.items() if option in accepted}
    flexible = replace(row, options={**row.options, **options})
    network = flexible.create().eval()
    for side in sides:
        if not any(_objection(network, side * h, side * w) for h, w in MULTIPLES):
            return replace(flexible, divisor=side, min_size=side)
    for side in sides:
        smallest = max(side, 2 * coarsest)
        built = replace(row, divisor=side, min_size=smallest, per_size=True)
        if _can_be_built(built, smallest) and _can_be_built(built, smallest + side):
            return built
    objection = _objection(row.create().eval(), pretrained, pretrained)
    if objection:
        raise ValueError(f"it takes no images, not even those of its pre-training: {objection}")
    return replace(row, divisor=pretrained, min_size=pretrained, side=pretrained)


def _can_be_built(row: TimmModel, side: int) -> bool:
    """Whether a network of a model can be built for images of this side in pixels."""
    try:
        network = row.for_size(side).create().eval()
    except REFUSALS:
        return False
    return not _objection(network, side, side)


def _objection(network: Any, height: int, width: int) -> str:  # noqa: ANN401
    """Why the network makes no maps of the promised strides of images of this size; empty if it does."""
    try:
        with torch.no_grad():
            maps = network(torch.empty(BATCH, BANDS, height, width, device="meta"))
    except REFUSALS as error:
        return str(error) or type(error).__name__
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    sides = [tuple(level.shape[1:3] if last else level.shape[2:]) for level in maps]
    promised = [(height // stride, width // stride) for stride in network.feature_info.reduction()]
    made, wanted = (_list([f"{h}x{w}" for h, w in each]) for each in (sides, promised))
    return "" if sides == promised else f"its maps have {made} pixels, not {wanted}"


def _traced(network: Any, side: int) -> tuple[bool, tuple[str, ...]]:  # noqa: ANN401
    """Whether images stay in their order up to the FFNs, and names of parameters that change no map."""
    batches: list[int] = []
    for mlp in ffns(network).values():
        layer = mlp.get_submodule("fc2")
        layer.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    levels = four_levels(network.feature_info.channels(), network.feature_info.reduction())[2]
    maps = network(torch.empty(BATCH, BANDS, side, side, device="meta"))
    torch.stack([maps[level].sum() for level in set(levels)]).sum().backward()
    inert = tuple(name for name, p in network.named_parameters() if p.requires_grad and p.grad is None)
    return set(batches) == {BATCH}, inert


def _stem(network: nn.Module) -> str:
    """Name of the weight of the first convolution."""
    for parameter, weight in network.named_parameters():
        if weight.ndim == IMAGE_AXES and weight.shape[1] == BANDS:
            return parameter
    raise ValueError("it has no convolution of red, green and blue")


def _undecayed(whole: Any, network: nn.Module) -> tuple[str, ...]:  # noqa: ANN401
    """Names in the feature network of the parameters that timm exempts from weight decay."""
    exempt = {plain_name(name) for name in getattr(whole, "no_weight_decay", tuple)()}
    return tuple(name for name, _ in network.named_parameters() if plain_name(name) in exempt)


def _list(values: Sequence[int | str]) -> str:
    return ", ".join(map(str, values))
