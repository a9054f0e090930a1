"""Test-time augmentation: average probabilities over flipped and resized views of each window."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from s5.errors import ConfigError
from s5.ops.photometric import to_unit
from s5.segmentation.windows import Inference, Mode, Probabilities, resize

# Dimensions to flip. The flips form a group, so the average is equivariant to them.
FLIPS = ((), (-1,), (-2,), (-2, -1))
MIN_SIDE = 16  # pixels


@dataclass(frozen=True)
class Tta:
    """Settings of test-time augmentation.

    Attributes:
        flip: Add the horizontal flip, the vertical flip and both.
        scales: Factors by which a window is resized; 1 keeps its size.

    Raises:
        ValueError: There is no scale, or one that is not a positive number.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Reject missing and non-positive scales."""
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise ValueError(f"scales {list(self.scales)}: must be one or more positive numbers")

    @property
    def views(self) -> int:
        """Forward passes per window."""
        return len(self.scales) * (len(FLIPS) if self.flip else 1)


def augmented(probabilities: Probabilities, tta: Tta | None) -> Probabilities:
    """Make a network average over the views of `tta`; returns it unchanged if there is a single view."""
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
    """Add the options for :func:`changed_inference` and :func:`make_tta`."""
    group = parser.add_argument_group(
        "prediction (default: the settings of the task's validation in training)"
    )
    group.add_argument("--mode", choices=get_args(Mode))
    group.add_argument("--crop", type=int, metavar="PIXELS", help="side of a window or resized image")
    group.add_argument("--stride", type=int, metavar="PIXELS", help="step between windows")
    group.add_argument("--tta", choices=["flip"], help="average over flips (four forward passes)")
    group.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], metavar="FACTOR", help="average over image scales"
    )


def changed_inference(
    inference: Mapping[str, Inference],
    mode: Mode | None = None,
    crop: int | None = None,
    stride: int | None = None,
) -> dict[str, Inference]:
    """Return the settings of all tasks with some values replaced; a new crop alone also scales the stride.

    Raises:
        ConfigError: A value is invalid, or the stride would leave gaps between windows.
    """
    return {task: _changed(settings, mode, crop, stride) for task, settings in inference.items()}


def make_tta(flip: bool, scales: Sequence[float]) -> Tta | None:
    """Build the augmentation, or None if there is nothing to average.

    Raises:
        ConfigError: A scale is not a positive number.
    """
    try:
        tta = Tta(flip, tuple(scales))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return None if tta == Tta() else tta


def _changed(inference: Inference, mode: Mode | None, crop: int | None, stride: int | None) -> Inference:
    if crop is None:
        crop = inference.crop
    if stride is None:
        stride = max(1, round(inference.stride * crop / inference.crop))
    if crop < 1:
        raise ConfigError(f"crop {crop}: must be at least one pixel")
    if mode is not None and mode not in get_args(Mode):
        raise ConfigError(f"mode {mode!r}: must be one of {', '.join(get_args(Mode))}")
    try:
        return Inference(mode or inference.mode, crop, stride)
    except ValueError as error:
        raise ConfigError(str(error)) from None
