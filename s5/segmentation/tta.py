"""Test-time augmentation: probabilities averaged over flipped and resized views of the same window."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from s5.errors import ConfigError
from s5.ops.photometric import to_unit
from s5.segmentation.windows import Inference, Mode, Probabilities, resize

# Dimensions to flip; together they are a group, so that the average turns with the image.
FLIPS = ((), (-1,), (-2,), (-2, -1))
MIN_SIDE = 16  # pixels


@dataclass(frozen=True)
class Tta:
    """Which views are averaged.

    Attributes:
        flip: Also the horizontal flip, the vertical one and both.
        scales: Factors by which a window is resized; 1 is the window as it is.

    Raises:
        ValueError: No scale, or one that is not a positive number.
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
    """The network that averages over the views of `tta`; None or a single plain view leaves it as it is."""
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


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Options of how images are predicted, for :func:`changed_inference` and :func:`make_tta`."""
    group = parser.add_argument_group("prediction (default: as the task was validated in training)")
    group.add_argument("--mode", choices=get_args(Mode))
    group.add_argument("--crop", type=int, metavar="PIXELS", help="side of a window or resized image")
    group.add_argument("--stride", type=int, metavar="PIXELS", help="step between windows")
    group.add_argument("--tta", choices=["flip"], help="average over flips: four times the work")
    group.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], metavar="FACTOR", help="average over sizes"
    )


def changed_inference(
    how: Mapping[str, Inference],
    mode: Mode | None = None,
    crop: int | None = None,
    stride: int | None = None,
) -> dict[str, Inference]:
    """The settings of tasks with some values changed; another crop alone scales the stride with it.

    Raises:
        ConfigError: The windows would leave gaps.
    """
    return {task: _changed(settings, mode, crop, stride) for task, settings in how.items()}


def make_tta(flip: bool, scales: Sequence[float]) -> Tta | None:
    """The augmentation, None without.

    Raises:
        ConfigError: A scale that is not a positive number.
    """
    try:
        tta = Tta(flip, tuple(scales))
    except ValueError as error:
        raise ConfigError(f"scales: {error}") from None
    return None if tta == Tta() else tta


def _changed(how: Inference, mode: Mode | None, crop: int | None, stride: int | None) -> Inference:
    if crop is None:
        crop = how.crop
    if stride is None:
        stride = max(1, round(how.stride * crop / how.crop))
    if crop < 1:
        raise ConfigError(f"crop {crop}: at least one pixel")
    if mode is not None and mode not in get_args(Mode):
        raise ConfigError(f"mode {mode!r}: must be one of {', '.join(get_args(Mode))}")
    try:
        return Inference(mode or how.mode, crop, stride)
    except ValueError as error:
        raise ConfigError(f"stride {stride}: {error}") from None
