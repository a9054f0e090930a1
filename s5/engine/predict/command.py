"""What the commands that predict images have in common."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from s5.data.errors import ImageError
from s5.engine import trained
from s5.engine.backbones import BACKBONES
from s5.engine.command import command_parser
from s5.engine.config import ConfigError
from s5.engine.inference_options import add_inference_options, changed_inference, chosen_tta
from s5.engine.launch import Launch
from s5.engine.predict.masks import Target, predict_files
from s5.engine.predict.plan import Request, carry_out
from s5.engine.predict.settings import Settings, identify
from s5.engine.predict.share import Work
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


def predict(
    args: argparse.Namespace,
    place: Launch,
    given: str,
    tasks: Sequence[str],
    target: Target,
    renew: bool = False,
) -> list[ImageError]:
    """Predict images to files with the checkpoint of the command line, see :func:`carry_out`.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint`` and ``resume``.
        place: this process.
        given: folder, file or pattern.
        tasks: names; all if empty.
        target: where to; its tables are filled in.
        renew: whether ``resume`` overwrites results that were made with other settings.

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
        model = trained.build_trained(recipe, args.checkpoint, place.device, dtype, chosen_tta(args))
        return partial(predict_files, model, target=target)

    return carry_out(request, build, place)


def settings_of(args: argparse.Namespace, recipe: Recipe, dtype: torch.dtype | None) -> Settings:
    """What the results of each task depend on, and what their values mean.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint``.
        recipe: the model.
        dtype: of the matrix work, None for float32.
    """
    return {
        task: {
            **identify(args.checkpoint),
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            **asdict(recipe.inference[task]),
            "tta": args.tta,
            "scales": args.scales,
            "labels": table.as_mapping(),
            "no_data": table.no_data,
        }
        for task, table in recipe.tables.items()
    }


def _find_recipe(args: argparse.Namespace, tasks: Sequence[str]) -> Recipe:
    """The model of the checkpoint with the tasks and windows of the command line."""
    config = trained.find_config(args.config, args.checkpoint, args.default_config)
    recipe = trained.find_recipe(args.checkpoint, args.backbone, config, args.cfg_options)
    given = [option for option in ("config", "cfg_options") if getattr(args, option)]
    if given and not recipe.configured:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"--{option}: {args.checkpoint} says itself what it holds, no configuration is read; leave the "
            f"option out. How images are predicted is changed with --mode, --crop and --stride"
        )
    recipe = recipe.only(tasks)
    return replace(recipe, inference=changed_inference(recipe.inference, args))
