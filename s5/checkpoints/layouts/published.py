"""The released S5 weights: `encoder.*`, segmentation or detection heads, dense or with experts.

Backbones with RVSA have other names in these files than plain ones, those of MTP's code.

Published detection heads (`{neck,rpn_head,roi_head}_<task>.*`) have the same shapes as those of this package,
but angles have the opposite sign, and the classes of DOTA are in another order.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import torch

from s5.backbones import EXPERT_KEY, StateDict, expert_names
from s5.checkpoints.layouts.base import Parts, Weights, Written, has_name
from s5.checkpoints.layouts.openmmlab import MMSEG_BLOCK_NAMES
from s5.checkpoints.layouts.rvsa import RvsaNames, has_windows
from s5.checkpoints.layouts.vit import VitLayout, inverse, replace_start, require_complete
from s5.errors import CheckpointError

# Tasks of the released models, in the order of their experts.
SEGMENTATION_TASKS = ("vaihingen", "potsdam", "openearthmap", "loveda")
DETECTION_TASKS = ("dior", "dota")
SPELLING = {"openearthmap": "OpenEarthMap"}
DEFAULT_TASK = "seg"  # task of a single head without task name

DETECTION_KEY = re.compile(r"^(neck|rpn_head|roi_head)_([^.]+)\.(.+)$")
DETECTION_PARTS = ("neck", "rpn_head", "roi_head")
ANGLE = 4  # row of the box deltas x, y, w, h, angle
DOTA_ROWS = (4, 10, 3, 8, 9, 0, 5, 11, 7, 13, 6, 12, 14, 1, 2, 15, 16, 17)
"""Row of the published classifier of each class of DOTA-v2.0, in the order of the dataset's authors."""


class PublishedS5(VitLayout):
    """A released backbone or full model."""

    key = "published"
    name = "published S5"
    example = "layers.N.ln1.*, fpn1.*, encoder.*"
    lacks = ()
    container = "model"
    blocks = "layers"
    block_names = MMSEG_BLOCK_NAMES | {"ffn.experts": "mlp.experts"}
    names = {
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "patch_embed.projection": "patch_embed.proj",
        "fpn1.0": "pyramid.up4.0",
        "fpn1.1.ln": "pyramid.up4.1",
        "fpn1.3": "pyramid.up4.3",
        "fpn2.0": "pyramid.up2",
    }

    def matches(self, parts: Parts) -> bool:
        """Match layers with a pyramid, or without the class slot that mmsegmentation always stores."""
        if any(key.startswith("fpn") for key in parts.encoder):
            return self.in_blocks(parts)
        table = parts.encoder.get("pos_embed")
        square = table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]
        return square and self.in_blocks(parts, "attn.attn.in_proj_weight")

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Rename the encoder and the heads, and replace the experts' numbers by task names."""
        weights = super().to_ours(Parts(parts.encoder, {}, ()), experts)
        heads, unused = _heads_to_ours(parts.around)
        backbone = _name_experts(weights.backbone, tuple(heads), tuple(experts))
        return Weights(self.name, backbone, heads, (*weights.unused, *unused, *parts.outside), self.lacks)

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Return the tensors unchanged, because the layout has all tensors and no class slot."""
        if "pos_embed" not in backbone:
            super().complete(backbone)  # raises the error
        return backbone, ()

    def from_ours(self, weights: Weights) -> Written:
        """Rename the backbone and the heads, and replace the experts' task names by numbers.

        A backbone with RVSA is written with the names that the released files have for it.
        """
        if has_windows(weights.backbone) and not isinstance(self, PublishedRvsa):
            return PublishedRvsa().from_ours(weights)
        require_complete(weights)
        numbers = {name: str(number) for number, name in enumerate(_order(weights.experts))}
        detects = any(map(_detects, weights.heads.values()))
        prefix = ("backbone." if detects else "encoder.") if weights.heads else ""
        numbered = {_rename_expert(key, numbers): value for key, value in weights.backbone.items()}
        state = {prefix + key: value for key, value in self.rename_back(numbered)[0].items()}
        return Written(state | dict(_heads_from_ours(weights.heads)), notes=self._notes(weights))

    def _notes(self, weights: Weights) -> tuple[str, ...]:
        notes = []
        if len(weights.heads) == 1 and not any(map(_detects, weights.heads.values())):
            task = next(iter(weights.heads))
            notes.append(f"a single head has no task name in this layout: the name {task} is lost")
        if weights.experts and not weights.heads and set(weights.experts) != set(SEGMENTATION_TASKS):
            experts = ",".join(weights.experts)
            if len(weights.experts) == len(SEGMENTATION_TASKS):
                raise CheckpointError(
                    f"experts for {experts}: in a backbone without heads, four numbered experts stand for "
                    f"{','.join(SEGMENTATION_TASKS)}; convert the full model, whose heads name the tasks"
                )
            notes.append(f"the names of the experts are lost: reading the file needs --tasks {experts}")
        return tuple(notes)


class PublishedRvsa(RvsaNames, PublishedS5):
    """A released backbone with RVSA, or a full model with one."""

    key = "published-rvsa"
    name = "published S5 with RVSA"
    example = "encoder.blocks.N.attn.sampling_offsets.*"

    def matches(self, parts: Parts) -> bool:
        """Match windows of RVSA; `Mtp` comes first for files of other projects."""
        return has_windows(parts.encoder)


def _heads_to_ours(around: StateDict) -> tuple[dict[str, StateDict], list[str]]:
    """Return heads by task under the names of this package, and all other keys."""
    several = any(key.startswith("semseghead_") for key in around)
    heads: dict[str, StateDict] = {}
    unused = []
    for key, value in around.items():
        if match := DETECTION_KEY.match(key):
            heads.setdefault(match[2], {})[f"{match[1]}.{match[3]}"] = value
            continue
        part, _, name = key.partition(".")
        kind, _, suffix = part.partition("_")
        if kind not in ("semsegdecoder", "semseghead"):
            unused.append(key)
            continue
        task = inverse(SPELLING).get(suffix, suffix) or (SEGMENTATION_TASKS[0] if several else DEFAULT_TASK)
        name = name if kind == "semsegdecoder" else name.replace("1.", "classifier.", 1)
        heads.setdefault(task, {})[name] = value
    rows = [*DOTA_ROWS, len(DOTA_ROWS)]  # background remains last
    return {task: _detection_meaning(task, head, rows) for task, head in heads.items()}, unused


def _heads_from_ours(heads: Mapping[str, StateDict]) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and tensors of the heads in the published layout."""
    rows = [DOTA_ROWS.index(row) for row in range(len(DOTA_ROWS))] + [len(DOTA_ROWS)]
    for task, head in heads.items():
        if _detects(head):
            for name, value in _detection_meaning(task, head, rows).items():
                part, _, rest = name.partition(".")
                yield f"{part}_{task}.{rest}", value
            continue
        suffix = f"_{SPELLING.get(task, task)}" if len(heads) > 1 else ""
        decoder = f"semsegdecoder{'' if task == SEGMENTATION_TASKS[0] else suffix}"
        names = {"decode_head": f"{decoder}.decode_head", "classifier": f"semseghead{suffix}.1"}
        for name, value in head.items():
            if (key := replace_start(name, names)) is None:
                raise CheckpointError(f"the published layout has no name for {name} of the head of {task}")
            yield key, value


def _detects(head: StateDict) -> bool:
    """Whether a head is for detection instead of segmentation."""
    return any(has_name(name, DETECTION_PARTS) for name in head)


def _detection_meaning(task: str, head: StateDict, rows: Sequence[int]) -> StateDict:
    """Negate angles, and reorder the rows of DOTA's classifier."""
    changed = dict(head)
    for name, tensor in head.items():
        if name.startswith("roi_head.") and ".fc_reg." in name:
            changed[name] = tensor.clone()
            changed[name][ANGLE] = -tensor[ANGLE]
        elif task == "dota" and name.startswith("roi_head.") and ".fc_cls." in name:
            changed[name] = tensor[rows]
    return changed


def _name_experts(backbone: StateDict, heads: tuple[str, ...], experts: tuple[str, ...]) -> StateDict:
    """Replace the experts' numbers by task names.

    Args:
        backbone: Tensors under the names of this package.
        heads: Tasks of the checkpoint's heads.
        experts: Names to use if they follow from neither the heads nor the number of experts.

    Raises:
        CheckpointError: The names are unknown.
    """
    count = len(expert_names(backbone))
    if not count:
        return backbone
    if len(heads) == count:
        names = _order(heads)
    elif count == len(SEGMENTATION_TASKS):
        names = SEGMENTATION_TASKS
    elif count == len(experts):
        names = experts
    else:
        given = f"; the model's are {', '.join(experts)}" if experts else ""
        raise CheckpointError(f"the checkpoint has {count} experts without names{given}")
    numbered = {str(number): name for number, name in enumerate(names)}
    return {_rename_expert(key, numbered): value for key, value in backbone.items()}


def _rename_expert(key: str, names: Mapping[str, str]) -> str:
    match = EXPERT_KEY.match(key)
    return key.replace(f".experts.{match[1]}.", f".experts.{names[match[1]]}.") if match else key


def _order(tasks: tuple[str, ...]) -> tuple[str, ...]:
    known = (SEGMENTATION_TASKS, DETECTION_TASKS)
    return next((order for order in known if set(order) == set(tasks)), tasks)
