"""Test-time augmentation: probabilities averaged over flipped and resized views of the same window."""

import math
from dataclasses import dataclass

from torch import Tensor

from s5.models.inference import Probabilities, resize, to_unit

# Dimensions to flip; together they are a group, so that the average turns with the image.
FLIPS = ((), (-1,), (-2,), (-2, -1))
MIN_SIDE = 16  # pixels


@dataclass(frozen=True)
class Tta:
    """Which views are averaged.

    Attributes:
        flip: also the horizontal flip, the vertical one and both.
        scales: factors by which a window is resized; 1 is the window as it is.

    Raises:
        ValueError: no scale, or one that is not a positive number.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse scales that leave nothing."""
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise ValueError(f"scales must be positive numbers, at least one, got {list(self.scales)}")

    @property
    def views(self) -> int:
        """Passes of the network for one window."""
        return len(self.scales) * (len(FLIPS) if self.flip else 1)


def augmented(probabilities: Probabilities, tta: Tta | None) -> Probabilities:
    """The network that averages over the views of ``tta``; None or a single plain view leaves it as it is."""
    if tta is None or (tta.views == 1 and tta.scales == (1.0,)):
        return probabilities

    def average(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for scale in tta.scales:
            scaled = _scaled(windows, scale)
            for dims in FLIPS if tta.flip else FLIPS[:1]:
                view = probabilities(scaled.flip(dims)).flip(dims)
                view = view if view.shape[-2:] == windows.shape[-2:] else resize(view, windows.shape[-2:])
                total = view if total is None else total.add_(view)
        assert total is not None
        return total.div_(tta.views)

    return average


def _scaled(windows: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return windows
    height, width = (max(round(side * scale), MIN_SIDE) for side in windows.shape[-2:])
    return resize(to_unit(windows), (height, width))
