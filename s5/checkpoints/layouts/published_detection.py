"""The detection heads of published checkpoints: their names, and what their numbers mean.

Published names are ``{neck,rpn_head,roi_head}_{dior,dota}.*``. Shapes are those of the parts here, but angles
are counted in the other direction, and the classes of DOTA come in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s5.data.datasets.dota import DOTA_V2 as DOTA_CLASSES
from s5.data.datasets.dota import DOTA_V2_PUBLISHED as PUBLISHED_DOTA_CLASSES

if TYPE_CHECKING:  # the class names are wanted where no model is
    from s5.checkpoints.resizing import StateDict

PARTS = ("neck", "rpn_head", "roi_head")
TASKS = ("dior", "dota")
"""Tasks of the released detector, in the order of its experts."""

ANGLE = 4  # row of the box deltas x, y, w, h, angle


def from_published(key: str) -> tuple[str, str] | None:
    """Task and name here of a published key; None for a key of something else."""
    part, _, rest = key.partition(".")
    for name in PARTS:
        task = part.removeprefix(f"{name}_")
        if task != part and task in TASKS:
            return task, f"{name}.{rest}"
    return None


def published_key(task: str, name: str) -> str:
    """The published key of a name of a task's head here."""
    part, _, rest = name.partition(".")
    return f"{part}_{task}.{rest}"


def to_our_meaning(task: str, head: StateDict) -> StateDict:
    """Tensors of a published head, under the names here, for our direction of angles and order of classes."""
    return _reordered(task, _with_angle_negated(head), PUBLISHED_DOTA_CLASSES, DOTA_CLASSES)


def to_published_meaning(task: str, head: StateDict) -> StateDict:
    """The inverse of :func:`to_our_meaning`."""
    return _reordered(task, _with_angle_negated(head), DOTA_CLASSES, PUBLISHED_DOTA_CLASSES)


def _with_angle_negated(head: StateDict) -> StateDict:
    changed = dict(head)
    for name, tensor in head.items():
        if ".fc_reg." in name:
            tensor = tensor.clone()
            tensor[ANGLE] = -tensor[ANGLE]
            changed[name] = tensor
    return changed


def _reordered(task: str, head: StateDict, theirs: tuple[str, ...], ours: tuple[str, ...]) -> StateDict:
    if task != "dota":
        return head
    rows = [theirs.index(name) for name in ours] + [len(ours)]  # background stays last
    return {name: tensor[rows] if ".fc_cls." in name else tensor for name, tensor in head.items()}
