"""What the commands that predict image files share: options, and the way from a predictor to files."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from s5.compat.precision import PRECISIONS
from s5.errors import ImageError
from s5.launch import Launch
from s5.launch import start as start_launch
from s5.prediction.plan import Request, Target, Work, carry_out, identify
from s5.prediction.predictor import Predictor


def add_prediction_options(parser: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    """Arguments of a command that predicts image files, for :func:`predict_to_files`.

    Args:
        parser: Of the command.
        formats: Names of the formats that it writes.
    """
    parser.add_argument("checkpoint", type=Path, help="whole model, with or without .pth")
    parser.add_argument("input", nargs="+", help="folders (with subfolders), files, or patterns in quotes")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        *("--tasks", "--task"), nargs="+", type=_names, default=[], metavar="NAME", help="default: all"
    )
    parser.add_argument(
        *("--formats", "--kinds"),
        nargs="+",
        type=partial(_names, known=formats),
        default=[[*formats]],
        metavar="NAME",
        help=f"of {', '.join(formats)}; default: all",
    )
    parser.add_argument("--resume", action="store_true", help="leave images alone whose results exist")
    add_precision_option(parser)


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """`--precision`."""
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")


def chosen(names: Sequence[Sequence[str]]) -> list[str]:
    """The names of an option that takes lists with spaces or commas, each once; none for `all`."""
    flat = list(dict.fromkeys(name for part in names for name in part))
    return [] if flat == ["all"] else flat


def start(device: str) -> Launch:
    """Join the other processes, if any, and log to the console from the main one."""
    launch = start_launch(device)
    level = logging.INFO if launch.is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    return launch


def predict_to_files(
    predictor: Predictor,
    given: Sequence[str],
    out: Path,
    formats: Sequence[str],
    launch: Launch,
    *,
    resume: bool = False,
    renew: bool = False,
) -> list[ImageError]:
    """Predict image files for all tasks of a predictor; several processes share them.

    Args:
        predictor: Its weights are read only if something is left to do.
        given: Folders, files or patterns.
        out: Folder of the results.
        formats: Names of formats.
        launch: This process.
        resume: Leave images alone whose results exist.
        renew: With `resume`, overwrite results that were made with other settings, instead of an error.

    Returns:
        Errors of images that could not be read; of all processes, in the main one.

    Raises:
        ConfigError: Existing results were made with other settings, or cannot be written.
        DataError: No images.
    """
    target = Target(out, tuple(predictor.tasks), tuple(formats), predictor.formats)
    precision = str(predictor.dtype or torch.float32).removeprefix("torch.")
    common: Mapping[str, str | int] = {**identify(predictor.checkpoint), "precision": precision}
    settings = {task: {**common, **predictor.settings(task)} for task in predictor.tasks}

    def build() -> Work:
        return partial(predictor.load().predict_files, target=target)

    return carry_out(Request(given, target, settings, resume, renew), build, launch)


def report(problems: Sequence[ImageError]) -> int:
    """Name the images that could not be read; returns the exit code."""
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} images could not be read; all others are done", file=sys.stderr)
    return 1 if problems else 0


def _names(text: str, known: Sequence[str] = ()) -> list[str]:
    """Names with commas between them.

    Raises:
        argparse.ArgumentTypeError: none, or one that is not known.
    """
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    if unknown := [name for name in names if known and name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: must be of {', '.join(known)}")
    return names
