"""Options of commands that predict images: windows, flips and sizes."""

import argparse
from collections.abc import Mapping
from typing import get_args

from s5.engine.config import ConfigError
from s5.models.inference import Inference, Mode
from s5.models.tta import Tta


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Options of how images are predicted, for :func:`changed_inference` and :func:`chosen_tta`."""
    group = parser.add_argument_group("prediction (default: as the task was validated in training)")
    group.add_argument("--mode", choices=get_args(Mode))
    group.add_argument("--crop", type=int, metavar="PIXELS", help="side of a window or resized image")
    group.add_argument("--stride", type=int, metavar="PIXELS", help="step between windows")
    group.add_argument("--tta", choices=["flip"], help="average over flips: four times the work")
    group.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], metavar="FACTOR", help="average over sizes"
    )


def changed_inference(how: Mapping[str, Inference], args: argparse.Namespace) -> dict[str, Inference]:
    """The tasks' settings with those of the command line; another crop alone scales the stride with it.

    Raises:
        ConfigError: the windows would leave gaps.
    """
    return {task: _changed(settings, args) for task, settings in how.items()}


def chosen_tta(args: argparse.Namespace) -> Tta | None:
    """The augmentation of the command line, None without.

    Raises:
        ConfigError: a scale that is not a positive number.
    """
    try:
        tta = Tta(args.tta == "flip", tuple(args.scales))
    except ValueError as error:
        raise ConfigError(f"--scales: {error}") from None
    return None if tta == Tta() else tta


def _changed(how: Inference, args: argparse.Namespace) -> Inference:
    crop = how.crop if args.crop is None else args.crop
    stride = max(1, round(how.stride * crop / how.crop)) if args.stride is None else args.stride
    if crop < 1:
        raise ConfigError(f"--crop {crop}: at least one pixel")
    try:
        return Inference(args.mode or how.mode, crop, stride)
    except ValueError as error:
        raise ConfigError(f"--stride {stride}: {error}") from None
