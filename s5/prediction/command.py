"""Options and steps shared by the commands that predict image files."""

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
    """Add the arguments of a command that predicts image files with :func:`predict_to_files`.

    Args:
        parser: The parser to extend.
        formats: Names of the formats that the command writes.
    """
    parser.add_argument("checkpoint", type=Path, help="full model, with or without .pth")
    parser.add_argument("input", nargs="+", help="folders (recursive), files, or quoted patterns")
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
        help=f"some of {', '.join(formats)}; default: all",
    )
    parser.add_argument("--resume", action="store_true", help="skip images whose results exist")
    add_precision_option(parser)


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """Add `--precision`."""
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")


def chosen(names: Sequence[Sequence[str]]) -> list[str]:
    """Flatten the names of an option and drop duplicates; empty for `all`."""
    flat = list(dict.fromkeys(name for part in names for name in part))
    return [] if flat == ["all"] else flat


def start(device: str) -> Launch:
    """Join the process group, if any, and log to the console from the main process."""
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
    """Predict image files for all tasks of a predictor, distributed over processes.

    Args:
        predictor: The predictor; its weights are loaded only if something is left to do.
        given: Folders, files or patterns.
        out: Folder of the results.
        formats: Names of the formats to write.
        launch: Device and processes.
        resume: Skip images whose results exist.
        renew: With `resume`, overwrite results of other settings instead of raising an error.

    Returns:
        Errors of images that could not be read; in the main process, those of all processes.

    Raises:
        ConfigError: Existing results were made with other settings, or results cannot be written.
        DataError: There are no images.
    """
    target = Target(out, tuple(predictor.tasks), tuple(formats), predictor.formats)
    precision = str(predictor.dtype or torch.float32).removeprefix("torch.")
    common: Mapping[str, str | int] = {**identify(predictor.checkpoint), "precision": precision}
    settings = {task: {**common, **predictor.settings(task)} for task in predictor.tasks}

    def build() -> Work:
        return partial(predictor.load().predict_files, target=target)

    return carry_out(Request(given, target, settings, resume, renew), build, launch)


def report(problems: Sequence[ImageError]) -> int:
    """Print the images that could not be read and return the exit code."""
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} images could not be read; all others are finished", file=sys.stderr)
    return 1 if problems else 0


def _names(text: str, known: Sequence[str] = ()) -> list[str]:
    """Split names at commas.

    Raises:
        argparse.ArgumentTypeError: There is no name, or one is unknown.
    """
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} contains no name")
    if unknown := [name for name in names if known and name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: must be one of {', '.join(known)}")
    return names
