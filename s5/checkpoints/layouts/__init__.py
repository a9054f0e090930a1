"""Checkpoint layouts: a registry of adapters, and conversion of any checkpoint through them.

The adapters are tried in the order of `LAYOUTS`. To add a layout, write a class and add an instance to it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from s5.backbones import PATCH_EMBEDDING, Backbone, StateDict, has_own_names
from s5.checkpoints.layouts.base import (
    Layout,
    OtherArchitectureError,
    Parts,
    Weights,
    Written,
)
from s5.checkpoints.layouts.dino import DinoV2, DinoV3, HuggingFaceDinoV2, HuggingFaceDinoV3, TimmViT
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.layouts.hugging_face import HuggingFace, HuggingFace5
from s5.checkpoints.layouts.mae import SatMAE, Timm, UnofficialMAE
from s5.checkpoints.layouts.openmmlab import MMPretrain, MMSegmentation
from s5.checkpoints.layouts.published import PublishedRvsa, PublishedS5
from s5.checkpoints.layouts.rvsa import Mtp
from s5.checkpoints.layouts.s5 import S5
from s5.checkpoints.layouts.swin import (
    HuggingFaceSwin,
    HuggingFaceSwin5,
    MicrosoftSwin,
    OpenMMLabSwin,
    TimmSwin,
)
from s5.errors import CheckpointError, did_you_mean

__all__ = ["LAYOUTS", "Layout", "Weights", "Written", "convert", "get_layout", "known_layouts"]

LAYOUTS: tuple[Layout, ...] = (
    S5(),
    PublishedS5(),
    Mtp(),
    PublishedRvsa(),
    MicrosoftSwin(),
    TimmSwin(),
    OpenMMLabSwin(),
    HuggingFaceSwin(),
    HuggingFaceSwin5(),
    DinoV3(),
    DinoV2(),
    HuggingFaceDinoV3(),
    HuggingFaceDinoV2(),
    TimmViT(),
    UnofficialMAE(),
    SatMAE(),
    MMSegmentation(),
    MMPretrain(),
    HuggingFace(),
    HuggingFace5(),
    Timm(),  # last, because it matches any blocks
)

# Keys of a state dict in a file, the preferred first. As in timm, averaged weights (EMA) come before those
# that they average; `ema_state_dict` comes last, because mmengine, which writes it, swaps the two.
AVERAGES = ("state_dict_ema", "model_ema", "teacher")
CONTAINERS = (
    *AVERAGES[:2],
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "student",
    "network",
    "net",
    "ema_state_dict",
    "module",  # of DeepSpeed
)
# Of DDP, torch.compile, FSDP and activation checkpointing.
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Locates the encoder. Groups: prefix of the model, prefix of the encoder in it (None if the model is the
# encoder).
PATCH_EMBEDDINGS = re.compile(
    r"^((?:.*?\.)??)((?:encoder|backbone)\.)?"
    r"(?:patch_embed\.(?:0\.)?proj(?:ection)?|embeddings\.patch_embeddings(?:\.projection)?)\.weight$"
)
OWN_MODEL = re.compile(r"^((?:.*?\.)??)heads\.[^.]+\.(?:decode_head|classifier|neck|rpn_head|roi_head)\.")

OWN_META = ("backbone", "img_size")  # in the metadata of every weight file of this package


def convert(checkpoint: Mapping, experts: Sequence[str] = (), backbone: Backbone | None = None) -> Weights:
    """Recognise the layout of a checkpoint and convert it to the names of this package.

    Args:
        checkpoint: State dict, or a container such as `{"model": state_dict}`; keys may have
            prefixes (`module.`, `segmentor.` ...). Averaged weights are preferred to those that they average.
        experts: Names of the experts of a published encoder, in order. They are used if the names follow
            neither from its heads nor from the number of experts (four in the released model).
        backbone: The backbone that the weights are for, which may know the names of the library it is from.

    Raises:
        CheckpointError: The keys match no known layout; the message suggests what they belong to.
    """
    state, notes = _tensors(checkpoint)
    if not any(tensor.numel() for tensor in state.values()):
        raise CheckpointError(_without_weights(checkpoint))
    library = None if backbone is None else _of_library(state, backbone)
    try:
        weights = _by_layout(checkpoint, state, experts, backbone)
    except CheckpointError:
        if library is None:
            raise
        weights = library
    # A layout may take the names of one ViT for those of another.
    if backbone is not None and library is not None and not backbone.architecture.fits(weights.backbone):
        weights = library
    return replace(weights, notes=(*notes, *weights.notes))


def _of_library(state: StateDict, backbone: Backbone) -> Weights | None:
    """Convert weights under the names of the library that the backbone is from; None if they are not its."""
    renamed = backbone.from_library(state)
    if renamed is None:
        return None
    used = set(map(id, renamed.values()))
    unused = tuple(key for key, value in state.items() if id(value) not in used)
    return Weights(f"of {backbone.name}", renamed, {}, unused, (backbone.own,))


def _by_layout(
    checkpoint: Mapping, state: StateDict, experts: Sequence[str], backbone: Backbone | None
) -> Weights:
    parts = _own_model(state) or _own_backbone(checkpoint, state) or _around_patch_embedding(state)
    layout = parts and next((layout for layout in LAYOUTS if layout.matches(parts)), None)
    if backbone is not None and backbone.architecture.timm_names and isinstance(layout, Timm):
        layout = get_layout(TimmViT.key)
    if not parts or not layout:
        raise CheckpointError(_unrecognised(state))
    try:
        return layout.to_ours(parts, experts)
    except OtherArchitectureError as error:
        raise CheckpointError(f"{error}. {known_layouts()}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{layout.name}: {error}") from error


def get_layout(key: str) -> Layout:
    """Look up a layout by its key or name.

    Raises:
        CheckpointError: There is no such layout; lists the keys.
    """
    layout = next((layout for layout in LAYOUTS if key in (layout.key, layout.name)), None)
    if layout is None:
        keys = [layout.key for layout in LAYOUTS]
        raise CheckpointError(
            f"unknown layout {key!r}; available: {', '.join(keys)}{did_you_mean(key, keys)}"
        )
    return layout


def known_layouts() -> str:
    """Describe all layouts, for messages."""
    examples: dict[str, list[str]] = {}
    for layout in LAYOUTS:
        examples.setdefault(layout.name, []).append(layout.example)
    return "Known layouts: " + "; ".join(f"{name} ({' or '.join(keys)})" for name, keys in examples.items())


def _tensors(checkpoint: Mapping) -> tuple[StateDict, list[str]]:
    """Unpack containers, strip wrapper prefixes, and keep tensors only; also returns notes on choices."""
    notes = []
    while present := [key for key in CONTAINERS if isinstance(checkpoint.get(key), Mapping)]:
        chosen, *others = [key for key in present if checkpoint[key]] or present
        if chosen in AVERAGES and others:
            notes.append(f"averaged weights ({chosen}) taken; the file also has {', '.join(others)}")
        checkpoint = checkpoint[chosen]
    state = {
        WRAPPERS.sub("", key): value
        for key, value in checkpoint.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    return state, notes


def _own_model(state: StateDict) -> Parts | None:
    """Split a full model of this package, recognised by its heads; None for anything else."""
    match = next((match for key in state if (match := OWN_MODEL.match(key))), None)
    if match is None or not any(key.startswith(f"{match[1]}backbone.") for key in state):
        return None
    return replace(_take_apart(state, match[1], "backbone."), ours=True)


def _own_backbone(checkpoint: Mapping, state: StateDict) -> Parts | None:
    """Return a backbone of this package, recognised by metadata or names; None for anything else."""
    meta = checkpoint.get("meta")
    described = isinstance(meta, Mapping) and all(key in meta for key in OWN_META)
    return Parts(state, {}, (), ours=True) if state and (described or has_own_names(state)) else None


def _around_patch_embedding(state: StateDict) -> Parts | None:
    """Split a checkpoint at the encoder that contains the patch embedding; None if there is none."""
    match = next((match for key in state if (match := PATCH_EMBEDDINGS.match(key))), None)
    return None if match is None else _take_apart(state, match[1], match[2] or "")


def _take_apart(state: StateDict, prefix: str, encoder: str) -> Parts:
    model = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return Parts(
        encoder={key.removeprefix(encoder): value for key, value in model.items() if key.startswith(encoder)},
        around={key: value for key, value in model.items() if not key.startswith(encoder)},
        outside=tuple(key for key in state if not key.startswith(prefix)),
    )


def _without_weights(checkpoint: Mapping) -> str:
    parts = {key: part for key, part in checkpoint.items() if isinstance(part, Mapping)}
    name = guess(
        [*map(str, checkpoint), *(f"{key}.{inner}" for key, part in parts.items() for inner in part)]
    )
    likeness = f"; it looks like {name}" if name else ""
    return (
        f"no weights: no key of the checkpoint holds a tensor{likeness}. If it is a pickled model, save its "
        f"state_dict() instead"
    )


def _unrecognised(state: StateDict) -> str:
    name = guess(state)
    keys = ", ".join(list(state)[:5])
    likeness = f"; it looks like {name}" if name else ""
    if not name and any(".attn." in key for key in state):
        likeness = f"; it has transformer blocks, but no patch embedding ({PATCH_EMBEDDING})"
    return f"unrecognised checkpoint, with keys {keys}{likeness}. {known_layouts()}"
