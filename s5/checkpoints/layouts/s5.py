"""Checkpoints of this package."""

from collections.abc import Sequence

from s5.backbones import PATCH_EMBEDDING
from s5.checkpoints.layouts.base import Layout, Parts, Weights, Written, has_name
from s5.checkpoints.layouts.vit import check_form, require_complete

HEAD_PARTS = ("decode_head", "classifier", "neck", "rpn_head", "roi_head")


class S5(Layout):
    """A backbone of any architecture, or a full model (`backbone.*`, `heads.<task>.*`)."""

    key = "s5"
    name = "S5"
    example = "blocks.*, pyramid.*"

    def matches(self, parts: Parts) -> bool:
        """Match files with metadata or heads by task, or whose encoder has a pyramid."""
        return parts.ours or any(has_name(key, ("pyramid",)) for key in parts.encoder)

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Group the heads by task; names are unchanged."""
        if PATCH_EMBEDDING in parts.encoder:
            check_form(parts.encoder)
        heads: dict[str, dict] = {}
        unused = []
        for key, value in parts.around.items():
            if (head_key := _head_key(key)) is not None:
                heads.setdefault(head_key[0], {})[head_key[1]] = value
            else:
                unused.append(key)
        return Weights(self.name, parts.encoder, heads, (*unused, *parts.outside))

    def from_ours(self, weights: Weights) -> Written:
        """Keep the names of a lone backbone; name one with heads as a full model."""
        if weights.depth and PATCH_EMBEDDING in weights.backbone:
            require_complete(weights)
        if not weights.heads:
            return Written(dict(weights.backbone))
        heads = {f"heads.{task}.{k}": v for task, head in weights.heads.items() for k, v in head.items()}
        return Written({f"backbone.{key}": value for key, value in weights.backbone.items()} | heads)


def _head_key(key: str) -> tuple[str, str] | None:
    """Task and name of a head's tensor; None for other tensors."""
    part, _, rest = key.partition(".")
    task, _, name = rest.partition(".")
    return (task, name) if part == "heads" and has_name(name, HEAD_PARTS) else None
