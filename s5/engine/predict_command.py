"""What the commands that predict images have in common."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from s5.data.errors import ImageError
from s5.engine import launch, trained
from s5.engine.command import command_parser
from s5.engine.config import ConfigError
from s5.engine.inference_options import add_inference_options, changed_inference, chosen_tta
from s5.engine.launch import Launch
from s5.engine.network import BACKBONES
from s5.engine.predict_files import Target, predict_files
from s5.engine.predict_plan import Request, carry_out
from s5.engine.predict_settings import settings_of
from s5.engine.predict_share import Work
from s5.engine.trained import Recipe
from s5.models.precision import PRECISIONS, resolve_precision


def prediction_parser(description: str, config: Path) -> argparse.ArgumentParser:
    """A parser with the options of how images are predicted.

    Args:
        description: the module's docstring.
        config: configuration that is read for checkpoints which do not say what they are.
    """
    parser = command_parser(description, config, BACKBONES)
    parser.set_defaults(config=None, backbone=None, default_config=config)  # the checkpoint knows
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    add_inference_options(parser)
    return parser


def start(device: str) -> Launch:
    """Join the other processes, if any, and log to the console from the main one."""
    place = launch.start(device)
    level = logging.INFO if place.is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    return place


def predict(
    args: argparse.Namespace,
    place: Launch,
    given: str,
    tasks: Sequence[str],
    target: Target,
    renew: bool = False,
) -> list[ImageError]:
    """Predict images to files with the checkpoint of the command line; see :func:`predict_plan.carry_out`.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint`` and ``resume``.
        place: this process.
        given: folder, file or pattern.
        tasks: names; all if empty.
        target: where to; its tables are filled in.
        renew: whether ``resume`` makes results anew that were made in another way.

    Returns:
        Errors of images that could not be read; of all processes, in the main one.

    Raises:
        ConfigError: unknown task, no backbone, a configuration that is not needed, or other settings than
            the results that are there.
        DataError: no images.
    """
    recipe = _find_recipe(args, tasks)
    target = replace(target, tables=recipe.tables)
    dtype = resolve_precision(args.precision, place.device)
    request = Request([given], target, settings_of(args, recipe, dtype), args.resume, renew)

    def build() -> Work:
        model = trained.build_trained(
            recipe, args.checkpoint, place.device, dtype, chosen_tta(args), args.allow_pickle
        )
        return partial(predict_files, model, target=target)

    return carry_out(request, build, place)


def report(problems: Sequence[ImageError]) -> int:
    """Name the images that could not be read; returns the exit code."""
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} images could not be read; all others are done", file=sys.stderr)
    return 1 if problems else 0


def _find_recipe(args: argparse.Namespace, tasks: Sequence[str]) -> Recipe:
    """The model of the checkpoint with the tasks and windows of the command line."""
    config = trained.find_config(args.config, args.checkpoint, args.default_config)
    recipe = trained.find_recipe(args.checkpoint, args.backbone, config, args.cfg_options, args.allow_pickle)
    given = [option for option in ("config", "cfg_options") if getattr(args, option)]
    if given and not recipe.configured:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"--{option}: {args.checkpoint} says itself what it holds, no configuration is read; leave the "
            f"option out. How images are predicted is changed with --mode, --crop and --stride"
        )
    recipe = recipe.only(tasks)
    return replace(recipe, inference=changed_inference(recipe.inference, args))
