"""What the commands that predict images have in common."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from s5.data.errors import ImageError
from s5.data.image_io import write_bytes
from s5.data.submission import SETTINGS_FILE
from s5.engine import launch, trained
from s5.engine.command import command_parser
from s5.engine.config import ConfigError
from s5.engine.inference_options import add_inference_options, changed_inference, chosen_tta
from s5.engine.network import BACKBONES
from s5.engine.predict_files import Target, predict_files
from s5.engine.predict_sources import Source, find_sources
from s5.engine.trained import Recipe
from s5.models.precision import PRECISIONS, resolve_precision

logger = logging.getLogger(__name__)


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


def predict(args: argparse.Namespace, given: str, tasks: Sequence[str], target: Target) -> list[ImageError]:
    """Predict images to files with the checkpoint of the command line.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint`` and ``resume``.
        given: folder, file or pattern.
        tasks: names; all if empty.
        target: where to; its tables are filled in.

    Returns:
        Errors of images that could not be read.

    Raises:
        ConfigError: unknown task, no backbone, or other settings than the results that are there.
        DataError: no images.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    place = launch.start(args.device)
    config = trained.find_config(args.config, args.checkpoint, args.default_config)
    recipe = trained.find_recipe(args.checkpoint, args.backbone, config, args.cfg_options, args.allow_pickle)
    recipe = recipe.only(tasks)
    recipe = replace(recipe, inference=changed_inference(recipe.inference, args))
    target = replace(target, tables=recipe.tables)
    sources = find_sources(given, target.folder)
    settings = _settings(args, recipe)
    if args.resume:
        _require_same(target.folder, settings)
        sources = _unfinished(sources, target)
        if not sources:
            return []
    dtype = resolve_precision(args.precision, place.device)
    model = trained.build_trained(
        recipe, args.checkpoint, place.device, dtype, chosen_tta(args), args.allow_pickle
    )
    start = time.monotonic()
    try:
        for task, values in settings.items():
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
            write_bytes(target.folder / task / SETTINGS_FILE, text.encode())
        problems = predict_files(model, sources, target)
    except OSError as error:
        raise ConfigError(
            f"{target.folder}: cannot be written ({error.strerror or error}); what is finished is kept, go "
            f"on with --resume"
        ) from None
    seconds = time.monotonic() - start
    done = len(sources) - len(problems)
    logger.info(
        "%d images, %d tasks, %.1f s, %.2f images/s", done, len(recipe.tables), seconds, done / seconds
    )
    return problems


def _settings(args: argparse.Namespace, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a task's results depend on, and what their values mean."""
    return {
        task: {
            "checkpoint": str(args.checkpoint.absolute()),
            **asdict(recipe.inference[task]),
            "tta": args.tta,
            "scales": args.scales,
            "labels": table.as_mapping(),
        }
        for task, table in recipe.tables.items()
    }


def _require_same(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on with results that were made in another way."""
    for task, values in settings.items():
        path = folder / task / SETTINGS_FILE
        if not path.exists():
            continue
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [key for key, value in values.items() if there.get(key) != value]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{path}: the results there were made with {key} {there.get(key)}, now it is {values[key]}; "
                f"choose another folder, or leave out --resume to make them anew"
            )


def _unfinished(sources: Sequence[Source], target: Target) -> list[Source]:
    left = [source for source in sources if not all(path.exists() for path in target.paths(source))]
    logger.info("%d of %d images are finished already", len(sources) - len(left), len(sources))
    return left
