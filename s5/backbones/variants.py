"""Sizes of the plain vision transformer: one row of numbers per backbone.

A further size is a further row; nothing else in the package knows the names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Architecture of a plain ViT.

    Attributes:
        name: Name used on the command line and in configs.
        width: Channels C of a token.
        depth: Number of transformer blocks.
        heads: Attention heads; must divide `width`.
        out_blocks: Four block indices (from 0, ascending) whose outputs feed the pyramid.
        mlp_ratio: Hidden width of the FFN divided by `width`.
        patch: Side of a patch in pixels.
    """

    name: str
    width: int
    depth: int
    heads: int
    out_blocks: tuple[int, int, int, int]
    mlp_ratio: float = 4.0
    patch: int = 16


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("vit_t", 192, 12, 3, (3, 5, 7, 11)),
        Variant("vit_s", 384, 12, 6, (3, 5, 7, 11)),
        Variant("vit_b", 768, 12, 12, (3, 5, 7, 11)),
        Variant("vit_l", 1024, 24, 16, (7, 11, 15, 23)),
        Variant("vit_h", 1280, 32, 16, (15, 23, 27, 31)),
        Variant("vit_g", 1408, 40, 16, (9, 19, 29, 39)),
    )
}


def get_variant(variant: str | Variant) -> Variant:
    """Look up a backbone by name; a `Variant` is returned as it is.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    if isinstance(variant, Variant):
        return variant
    if variant not in VARIANTS:
        raise ValueError(f"unknown backbone {variant!r}; known backbones: {', '.join(VARIANTS)}")
    return VARIANTS[variant]
