"""Networks: the backbone, its heads and their conversion from and to other checkpoint layouts."""

from s5.models.variants import VARIANTS, Variant, get_variant

__all__ = ["VARIANTS", "Variant", "get_variant"]
