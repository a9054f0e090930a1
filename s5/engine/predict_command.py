"""What the commands that predict images have in common."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s5.data.errors import ImageError
from s5.data.folders import find_files
from s5.engine import launch, trained
from s5.engine.command import command_parser
from s5.engine.config import ConfigError
from s5.engine.inference_options import add_inference_options, changed_inference, chosen_tta
from s5.engine.launch import Launch
from s5.engine.network import BACKBONES
from s5.engine.predict_files import KINDS, Target
from s5.engine.predict_settings import Settings, changes, settings_of, write_settings
from s5.engine.predict_share import cannot_write, from_main, predict_share
from s5.engine.predict_sources import Source, find_sources
from s5.engine.trained import Recipe
from s5.models.precision import PRECISIONS, resolve_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """What is to be done, for all processes together.

    Attributes:
        sources: images to predict.
        outdated: tasks whose results in the folder were made in another way.
    """

    sources: list[Source]
    outdated: list[str]


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
    """Predict images to files with the checkpoint of the command line; several processes share them.

    Results that were made in another way (checkpoint, windows ...) are removed before the first is written:
    after an interruption none is left to be taken for a new one.

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
    settings = settings_of(args, recipe, dtype)
    plan = from_main(lambda: _plan(args, given, target, settings, renew), place)
    if not plan.sources:
        return []
    model = trained.build_trained(
        recipe, args.checkpoint, place.device, dtype, chosen_tta(args), args.allow_pickle
    )
    from_main(lambda: _prepare(target, plan, settings), place)
    begin = time.monotonic()
    problems = predict_share(model, plan.sources, target, place)
    seconds = time.monotonic() - begin
    done = len(plan.sources) - len(problems)
    logger.info(
        "%d images, %d tasks, %.1f s, %.2f images/s", done, len(recipe.tables), seconds, done / seconds
    )
    return problems


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


def _plan(args: argparse.Namespace, given: str, target: Target, settings: Settings, renew: bool) -> _Plan:
    sources = find_sources(given, target.folder)
    changed = changes(target.folder, settings)
    if changed and args.resume and not renew:
        what = next(iter(changed.values()))
        raise ConfigError(f"{what}; choose another folder, or leave out --resume to make them anew")
    for task, what in changed.items():
        _require_no_others(_results_of(target, [task]), sources, what)
        logger.warning("%s; they are predicted again", what)
    if changed or not args.resume:
        return _Plan(sources, list(changed))
    left = [source for source in sources if not all(path.exists() for path in target.paths(source))]
    logger.info("%d of %d images are finished already", len(sources) - len(left), len(sources))
    return _Plan(left, [])


def _results_of(target: Target, tasks: Sequence[str]) -> Target:
    """All that may be in a folder for some of the tasks, also what is not asked for now."""
    return replace(target, tables={task: target.tables[task] for task in tasks}, kinds=KINDS)


def _require_no_others(target: Target, sources: Sequence[Source], what: str) -> None:
    """Refuse a folder where results would be left that were made in another way than it then says."""
    ours = {path for source in sources for path in target.paths(source)}
    folders = (target.folder / task / kind for task in target.tables for kind in target.kinds)
    others = [path for folder in folders for path in find_files(folder) if path not in ours]
    if others:
        raise ConfigError(
            f"{what}, and {len(others)} are of other images ({others[0]}); choose another folder, or remove "
            f"{target.folder}"
        )


def _prepare(target: Target, plan: _Plan, settings: Settings) -> None:
    """Remove results that would not be told from new ones, and say how the new ones are made."""
    try:
        for source in plan.sources:
            for path in _results_of(target, plan.outdated).paths(source):
                path.unlink(missing_ok=True)
        write_settings(target.folder, settings)
    except OSError as error:
        raise cannot_write(target.folder, error) from None
