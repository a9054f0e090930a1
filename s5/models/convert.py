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

from s5.models import convert_detection as detection
from s5.models.adapt import CheckpointError, StateDict, drop_class_slot

# Tasks of the released multi-dataset model, in the order of its experts.
PUBLISHED_TASKS = ("vaihingen", "potsdam", "openearthmap", "loveda")
PUBLISHED_SPELLING = {"openearthmap": "OpenEarthMap"}
DEFAULT_TASK = "seg"

KNOWN_LAYOUTS = (
    "S5 (blocks.*, pyramid.*)",
    "published S5 (layers.N.ln1.*, encoder.*)",
    "MAE or timm ViT (blocks.N.attn.qkv.*)",
)
CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "student", "network", "net")
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
# Groups: prefix of the model, prefix of the encoder in it (None where the model is the encoder).
ANCHOR = re.compile(r"^((?:.*?\.)??)((?:encoder|backbone)\.)?patch_embed\.proj(?:ection)?\.weight$")
BLOCK_KEY = re.compile(r"^(?:blocks|layers)\.(\d+)\.(.+)$")
EXPERT_KEY = re.compile(r"^blocks\.\d+\.mlp\.experts\.([^.]+)\.")

# Published name -> name here.
BLOCK_NAMES = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.attn.in_proj_weight": "attn.qkv.weight",
    "attn.attn.in_proj_bias": "attn.qkv.bias",
    "attn.attn.out_proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
    "ffn.experts": "mlp.experts",
}
BACKBONE_NAMES = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.projection": "patch_embed.proj",
    "fpn1.0": "pyramid.up4.0",
    "fpn1.1.ln": "pyramid.up4.1",
    "fpn1.3": "pyramid.up4.3",
    "fpn2.0": "pyramid.up2",
}
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
        return _experts(self.backbone)


def convert(checkpoint: Mapping, experts: Sequence[str] = ()) -> Weights:
    """Recognise a checkpoint by its keys and convert it to this package's names.

    Args:
        checkpoint: State dict, or a container such as ``{"model": state_dict}``; keys may have
            prefixes (``module.``, ``segmentor.`` ...).
        experts: Names of the experts of a published encoder, in order, where neither its heads nor
            their number (four: `PUBLISHED_TASKS`) tell them.

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
        layout, (backbone, unused) = "published S5", _from_published_encoder(whole)
        heads, more = _from_published_heads(rest)
        backbone = _name_experts(backbone, tuple(heads), tuple(experts))
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
    detects = any(_detects(head) for head in weights.heads.values())
    prefix = ("backbone." if detects else "encoder.") if weights.heads else ""
    experts = _published_order(weights.experts)
    published = {prefix + _published_key(key, experts): value for key, value in weights.backbone.items()}
    for task, head in weights.heads.items():
        if detects:
            meant = detection.to_published_meaning(task, head)
            published |= {detection.published_key(task, name): value for name, value in meant.items()}
            continue
        decoder, classifier = _published_head_names(task, single=len(weights.heads) == 1)
        names = {"decode_head": f"{decoder}.decode_head", "classifier": f"{classifier}.1"}
        published |= {_rename(key, names): value for key, value in head.items()}
    return published


def _published_key(key: str, experts: tuple[str, ...]) -> str:
    match = BLOCK_KEY.match(key)
    if match is None:
        return _rename(key, _inverse(BACKBONE_NAMES))
    name = _rename(match[2], _inverse(BLOCK_NAMES))
    if expert := EXPERT_KEY.match(key):
        name = name.replace(f".{expert[1]}.", f".{experts.index(expert[1])}.")
    return f"layers.{match[1]}.{name}"


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


def _from_published_encoder(state: StateDict) -> tuple[StateDict, list[str]]:
    kept, unused = _select(state, BLOCK_NAMES, BACKBONE_NAMES)
    renamed = {}
    for key, value in kept.items():
        match = BLOCK_KEY.match(key)
        name = (
            f"blocks.{match[1]}.{_rename(match[2], BLOCK_NAMES)}" if match else _rename(key, BACKBONE_NAMES)
        )
        renamed[name] = value
    return renamed, unused


def _select(
    state: StateDict, block_names: Iterable[str], names: Iterable[str]
) -> tuple[StateDict, list[str]]:
    """Keep what `ViT` has; unknown tensors inside a block would change what it computes."""
    kept, unused = {}, []
    for key, value in state.items():
        match = BLOCK_KEY.match(key)
        if match and not _has_name(match[2], block_names):
            raise CheckpointError(_unsupported(key))
        if match or _has_name(key, names):
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
        if part == "heads" and _has_name(name, ("decode_head", "classifier", *detection.PARTS)):
            heads.setdefault(task, {})[name] = value
        else:
            unused.append(key)
    return heads, unused


def _from_published_heads(state: StateDict) -> tuple[dict[str, StateDict], list[str]]:
    several = any(key.startswith("semseghead_") for key in state)
    spelling = {old: new for new, old in PUBLISHED_SPELLING.items()}
    heads: dict[str, StateDict] = {}
    unused = []
    for key, value in state.items():
        if (found := detection.from_published(key)) is not None:
            heads.setdefault(found[0], {})[found[1]] = value
            continue
        part, _, name = key.partition(".")
        kind, _, suffix = part.partition("_")
        if kind not in ("semsegdecoder", "semseghead"):
            unused.append(key)
            continue
        task = spelling.get(suffix, suffix) or (PUBLISHED_TASKS[0] if several else DEFAULT_TASK)
        name = name if kind == "semsegdecoder" else name.replace("1.", "classifier.", 1)
        heads.setdefault(task, {})[name] = value
    heads = {
        task: detection.to_our_meaning(task, head) if _detects(head) else head for task, head in heads.items()
    }
    return heads, unused


def _detects(head: StateDict) -> bool:
    return any(_has_name(name, detection.PARTS) for name in head)


def _name_experts(backbone: StateDict, heads: tuple[str, ...], experts: tuple[str, ...]) -> StateDict:
    """Replace the experts' numbers by task names."""
    count = len(_experts(backbone))
    if not count:
        return backbone
    if len(heads) == count:
        names = _published_order(heads)
    elif count == len(PUBLISHED_TASKS):
        names = PUBLISHED_TASKS
    elif count == len(experts):
        names = experts
    else:
        raise CheckpointError(f"the checkpoint has {count} experts without names; the model's are {experts}")
    return {
        key.replace(f".experts.{match[1]}.", f".experts.{names[int(match[1])]}.")
        if (match := EXPERT_KEY.match(key))
        else key: value
        for key, value in backbone.items()
    }


def _experts(backbone: StateDict) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match[1] for key in backbone if (match := EXPERT_KEY.match(key))))


def _published_order(tasks: tuple[str, ...]) -> tuple[str, ...]:
    known = (PUBLISHED_TASKS, detection.TASKS)
    return next((order for order in known if set(order) == set(tasks)), tasks)


def _published_head_names(task: str, single: bool) -> tuple[str, str]:
    if single:
        return "semsegdecoder", "semseghead"
    suffix = PUBLISHED_SPELLING.get(task, task)
    decoder = "semsegdecoder" if task == PUBLISHED_TASKS[0] else f"semsegdecoder_{suffix}"
    return decoder, f"semseghead_{suffix}"


def _rename(key: str, names: Mapping[str, str]) -> str:
    """Replace the leading part of a key; the key must have one of `names`."""
    old = next(name for name in names if _has_name(key, (name,)))
    return names[old] + key[len(old) :]


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _has_name(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _unsupported(key: str) -> str:
    return (
        f"the checkpoint has {key!r}, which a plain ViT block does not have (window attention, RVSA, "
        f"layer scale and the like are other architectures). Known layouts: {'; '.join(KNOWN_LAYOUTS)}"
    )


def _unrecognised(state: StateDict) -> str:
    keys = ", ".join(list(state)[:5]) or "none that holds a tensor"
    return f"unrecognised checkpoint, with keys {keys}. Known layouts: {'; '.join(KNOWN_LAYOUTS)}"
