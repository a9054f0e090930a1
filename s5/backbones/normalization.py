"""Normalisation of images: the mean and standard deviation that weights were trained with."""

import math
from typing import Any, NamedTuple

Channels = tuple[float, float, float]


class Normalization(NamedTuple):
    """Mean and standard deviation of red, green and blue, for images in [0, 1]."""

    mean: Channels
    std: Channels

    def __str__(self) -> str:
        """The name, or the values."""
        known = next((name for name, values in NORMALIZATIONS.items() if values == self), None)
        return known or f"mean {list(self.mean)}, std {list(self.std)}"


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DINOV3_SAT = Normalization((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
NORMALIZATIONS = {
    "imagenet": IMAGENET,
    "dinov3_sat": DINOV3_SAT,  # DINOv3 pre-trained on the satellite images of SAT-493M
    "clip": Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Normalisations by name."""


def parse_normalization(value: Any) -> Normalization:  # noqa: ANN401 - whatever a file holds
    """Return the normalisation of a name, or of a mean and a standard deviation of three numbers each.

    Raises:
        ValueError: It is neither; lists the names.
    """
    if isinstance(value, str) and value in NORMALIZATIONS:
        return NORMALIZATIONS[value]
    expected = (
        f"expected {', '.join(NORMALIZATIONS)}, or [mean, std] with three numbers each for images in [0, 1]"
    )
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(expected)
    try:
        mean, std = (_channels(values) for values in value)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if min(std) <= 0:
        raise ValueError(f"{expected}; the standard deviations must be positive")
    return Normalization(mean, std)


def _channels(values: Any) -> Channels:  # noqa: ANN401 - whatever a file holds
    red, green, blue = map(float, values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError
    return red, green, blue
