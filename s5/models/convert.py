"""Checkpoint layouts: recognise one by its keys, convert it to this package's names and back.

Known layouts:

- **S5**: this package's own, `blocks.*` and `pyramid.*`, of the backbone alone or of a whole model
  (`backbone.*`, `heads.<task>.*`, behind any further prefix).
- **published S5**: the layout of the released weights, `layers.N.ln1.*`, of the encoder alone or of a
  whole model (`encoder.*`, `semsegdecoder*`, `semseghead*`), dense or with experts.
- **MAE or timm**: `blocks.*` without a pyramid; the position table may have a class slot.

All functions are pure: state dicts in, new state dicts out, tensors shared where unchanged.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from s5.models import convert_published as published
from s5.models.adapt import CheckpointError, StateDict, drop_class_slot
from s5.models.convert_detection import PARTS
from s5.models.convert_published import BLOCK_KEY, has_name

KNOWN_LAYOUTS = (
    "S5 (blocks.*, pyramid.*)",
    "published S5 (layers.N.ln1.*, encoder.*)",
    "MAE or timm ViT (blocks.N.attn.qkv.*)",
)
CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "student", "network", "net")
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
# Groups: prefix of the model, prefix of the encoder in it (None where the model is the encoder).
ANCHOR = re.compile(r"^((?:.*?\.)??)((?:encoder|backbone)\.)?patch_embed\.proj(?:ection)?\.weight$")
OWN_BLOCK_NAMES = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.experts")
OWN_BACKBONE_NAMES = ("cls_token", "pos_embed", "patch_embed.proj", "pyramid")


@dataclass(frozen=True)
class Weights:
    """A converted checkpoint.

    Attributes:
        layout: ``S5``, ``published S5`` or ``MAE or timm``.
        backbone: Backbone tensors under the names of `ViT`.
        heads: Head tensors under the names of `SegHead`, or of a detection head, by task.
        unused: Keys of the checkpoint that no model here has a place for.
    """

    layout: str
    backbone: StateDict
    heads: dict[str, StateDict]
    unused: tuple[str, ...]

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.backbone["patch_embed.proj.weight"].shape[0]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(int(match[1]) for key in self.backbone if (match := BLOCK_KEY.match(key)))

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts; empty for a dense backbone."""
        return published.expert_names(self.backbone)


def convert(checkpoint: Mapping, experts: Sequence[str] = ()) -> Weights:
    """Recognise a checkpoint by its keys and convert it to this package's names.

    Args:
        checkpoint: State dict, or a container such as ``{"model": state_dict}``; keys may have
            prefixes (``module.``, ``segmentor.`` ...).
        experts: Names of the experts of a published encoder, in order, where neither its heads nor
            their number (four: those of `s5.models.convert_published`) tell them.

    Raises:
        CheckpointError: The keys fit no known layout; the message lists some of them.
    """
    state = _tensors(checkpoint)
    prefix, encoder = _locate_encoder(state)
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outside = [key for key in state if not key.startswith(prefix)]
    whole = {key.removeprefix(encoder): value for key, value in inner.items() if key.startswith(encoder)}
    rest = {key: value for key, value in inner.items() if not key.startswith(encoder)} if encoder else {}

    if any(key.startswith("layers.") for key in whole):
        layout = "published S5"
        kept, unused = _select(whole, published.BLOCK_NAMES, published.BACKBONE_NAMES)
        heads, more = published.from_published_heads(rest)
        backbone = published.name_experts(
            published.from_published_encoder(kept), tuple(heads), tuple(experts)
        )
    elif any(key.startswith("blocks.") for key in whole):
        layout = "S5" if any(key.startswith("pyramid.") for key in whole) else "MAE or timm"
        backbone, unused = _select(whole, OWN_BLOCK_NAMES, OWN_BACKBONE_NAMES)
        heads, more = _from_own_heads(rest)
    else:
        raise CheckpointError(_unrecognised(state))
    if "pos_embed" not in backbone:
        raise CheckpointError(
            "the checkpoint has no position table (pos_embed), so it is another architecture"
        )
    if layout == "MAE or timm":
        backbone["pos_embed"] = drop_class_slot(backbone["pos_embed"])
    return Weights(layout, backbone, heads, tuple([*unused, *more, *outside]))


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


def _locate_encoder(state: StateDict) -> tuple[str, str]:
    """Find the prefix of the model and, below it, that of its encoder (empty for an encoder alone)."""
    for key in state:
        if match := ANCHOR.match(key):
            return match[1], match[2] or ""
    raise CheckpointError(_unrecognised(state))


def _select(
    state: StateDict, block_names: Iterable[str], names: Iterable[str]
) -> tuple[StateDict, list[str]]:
    """Keep what `ViT` has; unknown tensors inside a block would change what it computes."""
    kept, unused = {}, []
    for key, value in state.items():
        match = BLOCK_KEY.match(key)
        if match and not has_name(match[2], block_names):
            raise CheckpointError(_unsupported(key))
        if match or has_name(key, names):
            kept[key] = value
        else:
            unused.append(key)
    return kept, unused


def _from_own_heads(state: StateDict) -> tuple[dict[str, StateDict], list[str]]:
    heads: dict[str, StateDict] = {}
    unused = []
    for key, value in state.items():
        part, _, rest = key.partition(".")
        task, _, name = rest.partition(".")
        if part == "heads" and has_name(name, ("decode_head", "classifier", *PARTS)):
            heads.setdefault(task, {})[name] = value
        else:
            unused.append(key)
    return heads, unused


def _unsupported(key: str) -> str:
    return (
        f"the checkpoint has {key!r}, which a plain ViT block does not have (window attention, RVSA, "
        f"layer scale and the like are other architectures). Known layouts: {'; '.join(KNOWN_LAYOUTS)}"
    )


def _unrecognised(state: StateDict) -> str:
    keys = ", ".join(list(state)[:5]) or "none that holds a tensor"
    return f"unrecognised checkpoint, with keys {keys}. Known layouts: {'; '.join(KNOWN_LAYOUTS)}"
