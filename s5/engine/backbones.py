"""Names of the backbones that commands take, and what follows from them."""

from s5.engine.config import ConfigError
from s5.models.variants import VARIANTS, get_variant

MOE = "_moe"
BACKBONES = (*VARIANTS, *(f"{name}{MOE}" for name in VARIANTS))
"""Names that multi-task commands take: ``vit_b`` is dense, ``vit_b_moe`` has experts."""


def dense_name(backbone: str) -> str:
    """The name in :data:`~s5.models.variants.VARIANTS`."""
    return backbone.removesuffix(MOE)


def expert_channels(backbone: str, channels: int) -> int:
    """Channels of the experts: 0 for a dense backbone, else those of the configuration.

    Raises:
        ConfigError: more than the backbone is wide.
    """
    if not backbone.endswith(MOE):
        return 0
    width = get_variant(dense_name(backbone)).width
    if channels > width:
        raise ConfigError(
            f"model.expert_channels {channels}: {backbone} has {width} channels, so choose 0 (no experts) to "
            f"{width} (nothing shared in the second linear layer), such as {width // 4}"
        )
    return channels
