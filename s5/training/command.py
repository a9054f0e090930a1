"""Command-line options shared by several commands, and validation of backbone and task names."""

import argparse
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import nn

from s5.backbones import dense_name, get_architecture, has_experts, list_backbones
from s5.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def command_parser(description: str, config: Path, experts: bool = False) -> argparse.ArgumentParser:
    """Create a parser with the options shared by all commands of a tree.

    Args:
        description: Docstring of the command's module.
        config: Default configuration.
        experts: Whether backbones with experts are allowed.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=str(config), help="YAML configuration")
    names = f"{', '.join(list_backbones(experts))}, or timm:NAME"
    parser.add_argument("--backbone", type=lambda name: _backbone_name(name, experts), help=names)
    add_common_options(parser)
    return parser


def check_backbone(name: str, experts: bool) -> str:
    """Return the name of a backbone after checking that it is known.

    Args:
        name: Name on the command line or in a configuration.
        experts: Whether backbones with experts are allowed.

    Raises:
        ValueError: The name is unknown (lists the known ones), or has experts.
    """
    get_architecture(name, experts)
    if has_experts(name) and not experts:
        raise ValueError(f"{name}: experts are for several tasks; use {dense_name(name)}")
    return name


def _backbone_name(name: str, experts: bool) -> str:
    try:
        return check_backbone(name, experts)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _AllowPickle(argparse.Action):
    """Accepts a former option, so that scripts which pass it keep working, and says why it has no effect."""

    def __call__(self, *_: object) -> None:
        logger.warning(
            "--allow-pickle has no effect: a pickle can run any program with your rights, so objects other "
            "than weights are never loaded from a checkpoint, only skipped"
        )


def add_common_options(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """Add the options of all commands of all trees; `aliases` are further names of `--cfg-options`."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--allow-pickle", action=_AllowPickle, nargs=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--cfg-options",
        *aliases,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override configuration; may be given more than once",
    )


def add_training_options(parser: argparse.ArgumentParser, init: str, *aliases: str, work_dir: str) -> None:
    """Add the options of all training commands: initial weights, output folder, resuming.

    Args:
        parser: The parser to extend.
        init: Values that `--init` accepts, for the help.
        aliases: Further names of `--init`.
        work_dir: Name of the default output folder, for the help.
    """
    parser.add_argument(
        "--init", *aliases, metavar="WEIGHTS", help=f"start from {init} (default: as configured)"
    )
    parser.add_argument(  # short for --cfg-options init_bands=R,G,B
        "--init-bands",
        dest="cfg_options",
        action="append",
        type=lambda text: f"init_bands=[{text}]",
        metavar="R,G,B",
        help="red, green and blue channels of the images that the initial weights were trained on: numbers "
        "from 1, such as 3,2,1, or names, such as B04,B03,B02",
    )
    parser.add_argument("--work-dir", type=Path, help=f"output folder (default: work_dirs/{work_dir})")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="PATH",
        help="resume from the latest checkpoint in the work folder, or from PATH",
    )


def initial_weights(init: str | None) -> str | None:
    """Return the name or path of initial weights; None for random weights."""
    return None if init in (None, "none") else init


def true_or_false(text: str) -> bool:
    """Parse `True` or `False`, ignoring case.

    Raises:
        argparse.ArgumentTypeError: The text is neither.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


T = TypeVar("T")

TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def check_task_names(tasks: dict[str, T]) -> dict[str, T]:
    """Return the tasks after checking that their names can be names of modules and files.

    Raises:
        ValueError: There is no task, or a name is invalid or duplicate.
    """
    if not tasks:
        raise ValueError("at least one dataset is needed")
    taken = dir(nn.ModuleDict())
    for name in tasks:
        if not TASK_NAME.fullmatch(name) or name in taken:
            raise ValueError(
                f"{name!r} cannot name a task: use a letter followed by letters, digits, _ and -, and no "
                f"attribute of torch modules such as 'keys' or 'type'"
            )
    twice = [name for name in tasks if sum(name.lower() == other.lower() for other in tasks) > 1]
    if twice:
        raise ValueError(f"dataset names must differ in more than case: {', '.join(twice)}")
    return tasks


def known_tasks(known: Collection[str], wanted: Collection[str], whose: str = "this model") -> list[str]:
    """Return the wanted tasks in the order of the known ones; all tasks if `wanted` is empty.

    Raises:
        ConfigError: A task is unknown; lists the known ones.
    """
    for task in wanted:
        if task not in known:
            raise ConfigError(f"unknown task {task!r}; {whose}'s tasks: {', '.join(known)}")
    return [task for task in known if task in wanted or not wanted]


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Prefix data errors raised inside with the configuration key that the data belongs to."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def expert_channels(backbone: str, channels: int) -> int:
    """Channels of the experts: 0 for a dense backbone, otherwise the configured number.

    Raises:
        ConfigError: The backbone is unknown, or has fewer channels than the experts.
    """
    try:
        width = get_architecture(backbone).max_expert_channels
    except ValueError as error:
        raise ConfigError(f"backbone = {backbone!r}: {error}") from None
    if not has_experts(backbone):
        return 0
    if channels > width:
        raise ConfigError(
            f"model.expert_channels {channels}: {backbone} has {width} channels, so choose 0 (no experts) to "
            f"{width} (nothing shared in the second linear layer), such as {width // 4}"
        )
    return channels
