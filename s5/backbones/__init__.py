"""Backbones: images to four feature maps of strides 4, 8, 16 and 32."""

from s5.backbones.variants import VARIANTS, Variant, get_variant

__all__ = ["VARIANTS", "Variant", "get_variant"]
