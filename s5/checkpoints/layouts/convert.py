"""Conversion of checkpoints of any layout in `s5.checkpoints.layouts`, and to the published layout.

All functions are pure: state dicts in, new state dicts out, tensors shared where unchanged.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from s5.checkpoints.layouts import LAYOUTS, OtherArchitectureError, Parts, Weights, known_layouts, published
from s5.checkpoints.layouts.base import PATCH_EMBEDDING
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.resizing import CheckpointError, StateDict

__all__ = ["CheckpointError", "Weights", "convert", "to_published"]

CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "student", "network", "net")
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
# Groups: prefix of the model, prefix of the encoder in it (None where the model is the encoder).
ANCHOR = re.compile(
    r"^((?:.*?\.)??)((?:encoder|backbone)\.)?"
    r"(?:patch_embed\.proj(?:ection)?|embeddings\.patch_embeddings\.projection)\.weight$"
)
BODY_ANCHOR = re.compile(
    r"^((?:.*?\.)??)(backbone\.)?body\."
)  # of this package's models around a network of timm


def convert(checkpoint: Mapping, experts: Sequence[str] = ()) -> Weights:
    """Recognise a checkpoint by its keys and convert it to this package's names.

    Args:
        checkpoint: State dict, or a container such as ``{"model": state_dict}``; keys may have
            prefixes (``module.``, ``segmentor.`` ...).
        experts: Names of the experts of a published encoder, in order, where neither its heads nor
            their number (four: those of `s5.checkpoints.layouts.published`) tell them.

    Raises:
        CheckpointError: The keys fit no known layout; the message says what they look like.
    """
    state = _tensors(checkpoint)
    found = (_take_apart(state, anchor) for anchor in (BODY_ANCHOR, ANCHOR))
    fitting = ((p, layout) for p in found if p for layout in LAYOUTS if layout.matches(p.encoder))
    parts, layout = next(fitting, (None, None))
    if not parts or not layout:
        raise CheckpointError(_unrecognised(state))
    try:
        return layout.to_ours(parts, experts)
    except OtherArchitectureError as error:
        raise CheckpointError(f"{error}. {known_layouts()}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{layout.name}: {error}") from error


def to_published(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Convert the state dict of a `ViT` or a `Segmentor` to the published layout.

    Raises:
        CheckpointError: `state` is in another layout than this package's.
    """
    weights = convert(state)
    if weights.layout != "S5" or weights.unused:
        raise CheckpointError(
            f"not a state dict of this package's models: {weights.layout}, {weights.unused[:3]}"
        )
    encoder = published.to_published_encoder(weights.backbone, weights.experts)
    prefix = ""
    if weights.heads:
        detects = any(map(published.detects, weights.heads.values()))
        prefix = "backbone." if detects else "encoder."
    named = {prefix + key: value for key, value in encoder.items()}
    return named | published.to_published_heads(weights.heads)


def _tensors(checkpoint: Mapping) -> StateDict:
    """Unpack containers, drop wrapper prefixes, keep tensors."""
    while inner := next((checkpoint[k] for k in CONTAINERS if isinstance(checkpoint.get(k), Mapping)), None):
        checkpoint = inner
    return {
        WRAPPERS.sub("", key): value
        for key, value in checkpoint.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }


def _take_apart(state: StateDict, anchor: re.Pattern) -> Parts | None:
    """Find the encoder by a key of it, such as its patch embedding; None where there is none."""
    match = next((match for key in state if (match := anchor.match(key))), None)
    if match is None:
        return None
    prefix, encoder = match[1], match[2] or ""
    model = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return Parts(
        encoder={key.removeprefix(encoder): value for key, value in model.items() if key.startswith(encoder)},
        around={key: value for key, value in model.items() if not key.startswith(encoder)},
        outside=tuple(key for key in state if not key.startswith(prefix)),
    )


def _unrecognised(state: StateDict) -> str:
    if not state:
        return (
            "no weights: the checkpoint has no key that holds a tensor. Of a model that was saved as a "
            "whole, save the state_dict() instead"
        )
    name = guess(state)
    keys = ", ".join(list(state)[:5])
    likeness = f"; it looks like {name}" if name else ""
    if not name and any(".attn." in key for key in state):
        likeness = f"; it has transformer blocks, but no patch embedding ({PATCH_EMBEDDING})"
    return f"unrecognised checkpoint, with keys {keys}{likeness}. {known_layouts()}"
