"""The published layout: its names, and the way from them to this package's and back.

``layers.N.ln1.*`` and the like of an encoder, dense or with numbered experts; ``semsegdecoder*`` and
``semseghead*`` of segmentation; for detection see :mod:`s5.checkpoints.layouts.published_detection`.
"""

import re
from collections.abc import Iterable, Mapping

from s5.backbones.moe import EXPERT_KEY, expert_names
from s5.checkpoints.layouts import published_detection as detection
from s5.checkpoints.resizing import CheckpointError, StateDict

# Tasks of the released multi-dataset model, in the order of its experts.
PUBLISHED_TASKS = ("vaihingen", "potsdam", "openearthmap", "loveda")
PUBLISHED_SPELLING = {"openearthmap": "OpenEarthMap"}
DEFAULT_TASK = "seg"

# Keys of an encoder in both layouts.
BLOCK_KEY = re.compile(r"^(?:blocks|layers)\.(\d+)\.(.+)$")

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


def from_published_heads(state: StateDict) -> tuple[dict[str, StateDict], list[str]]:
    """Heads by task under the names here, of a model without its encoder, and the keys of other things."""
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
        task: detection.to_our_meaning(task, head) if detects(head) else head for task, head in heads.items()
    }
    return heads, unused


def name_experts(backbone: StateDict, heads: tuple[str, ...], experts: tuple[str, ...]) -> StateDict:
    """Replace the experts' numbers by task names.

    Args:
        backbone: Tensors under the names here.
        heads: Tasks of the checkpoint's heads.
        experts: Names to take where neither the heads nor the number of experts tell them.

    Raises:
        CheckpointError: Nothing tells them.
    """
    count = len(expert_names(backbone))
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


def to_published_encoder(backbone: StateDict, experts: tuple[str, ...]) -> StateDict:
    """The inverse of `s5.checkpoints.layouts.PublishedS5` for an encoder.

    Args:
        backbone: Tensors under the names here.
        experts: Names of its experts, in any order.
    """
    order = _published_order(experts)
    return {_published_key(key, order): value for key, value in backbone.items()}


def to_published_heads(heads: Mapping[str, StateDict]) -> StateDict:
    """The inverse of :func:`from_published_heads`."""
    published: StateDict = {}
    for task, head in heads.items():
        if detects(head):
            meant = detection.to_published_meaning(task, head)
            published |= {detection.published_key(task, name): value for name, value in meant.items()}
            continue
        decoder, classifier = _published_head_names(task, single=len(heads) == 1)
        names = {"decode_head": f"{decoder}.decode_head", "classifier": f"{classifier}.1"}
        published |= {_rename(key, names): value for key, value in head.items()}
    return published


def detects(head: StateDict) -> bool:
    """Whether a head finds objects; else it segments."""
    return any(has_name(name, detection.PARTS) for name in head)


def has_name(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of `names` or of something inside it."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _published_key(key: str, experts: tuple[str, ...]) -> str:
    match = BLOCK_KEY.match(key)
    if match is None:
        return _rename(key, _inverse(BACKBONE_NAMES))
    name = _rename(match[2], _inverse(BLOCK_NAMES))
    if expert := EXPERT_KEY.match(key):
        name = name.replace(f".{expert[1]}.", f".{experts.index(expert[1])}.")
    return f"layers.{match[1]}.{name}"


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
    old = next(name for name in names if has_name(key, (name,)))
    return names[old] + key[len(old) :]


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}
