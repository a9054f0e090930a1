"""Options that several commands share, and names on the command line: backbones and tasks."""

import argparse
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import nn

from s5.backbones import get_architecture, has_experts, list_backbones
from s5.errors import ConfigError, DataError


def command_parser(
    description: str, config: Path, default: str = "vit_b", experts: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options that all commands of a tree share.

    Args:
        description: The module's docstring.
        config: Default configuration.
        default: The backbone without `--backbone`.
        experts: Whether it may be one with experts.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=str(config), help="YAML configuration")
    parser.add_argument("--backbone", default=default, choices=list_backbones(experts))
    add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """The options of all commands of all trees; `aliases` are further names of `--cfg-options`."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    # Once needed for checkpoints with other objects in them; accepted so that earlier commands still run.
    parser.add_argument("--allow-pickle", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--cfg-options",
        *aliases,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override configuration; may be given more than once",
    )


def add_training_options(
    parser: argparse.ArgumentParser, init: str, *aliases: str, default: str | None = None, work_dir: str
) -> None:
    """The options of all commands that train: initial weights, output folder, resuming.

    Args:
        parser: Takes the options.
        init: What `--init` takes.
        aliases: Further names of `--init`.
        default: Of `--init`.
        work_dir: Name of the default output folder, for the help.
    """
    parser.add_argument("--init", *aliases, default=default, metavar="WEIGHTS", help=f"start from {init}")
    parser.add_argument(  # short for --cfg-options init_bands=R,G,B
        "--init-bands",
        dest="cfg_options",
        action="append",
        type=lambda text: f"init_bands=[{text}]",
        metavar="R,G,B",
        help="channels of the initial weights' images that are red, green and blue, counted from 1: 3,2,1",
    )
    parser.add_argument("--work-dir", type=Path, help=f"output folder (default: work_dirs/{work_dir})")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="PATH",
        help="go on from the latest checkpoint of the work folder, or from PATH",
    )


def initial_checkpoint(init: str | None) -> Path | None:
    """The checkpoint that `--init` names; None for random weights."""
    return None if init in (None, "none") else Path(init)


def true_or_false(text: str) -> bool:
    """`True` or `False` of a command line, in any case.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


T = TypeVar("T")

TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def check_task_names(tasks: dict[str, T]) -> dict[str, T]:
    """Refuse names that cannot name a module or a file; returns the tasks.

    Raises:
        ValueError: No task, or a bad name.
    """
    if not tasks:
        raise ValueError("at least one dataset is needed")
    taken = dir(nn.ModuleDict())
    for name in tasks:
        if not TASK_NAME.fullmatch(name) or name in taken:
            raise ValueError(
                f"{name!r} cannot name a task: a letter, then letters, digits, _ and -, and no name of "
                f"an attribute of torch's modules such as 'keys' or 'type'"
            )
    twice = [name for name in tasks if sum(name.lower() == other.lower() for other in tasks) > 1]
    if twice:
        raise ValueError(f"datasets of the same name: {', '.join(twice)}")
    return tasks


def known_tasks(known: Collection[str], wanted: Collection[str]) -> list[str]:
    """The tasks of a model that are wanted, in its order; all if none are named.

    Raises:
        ConfigError: Unknown task; lists the known ones.
    """
    for task in wanted:
        if task not in known:
            raise ConfigError(f"unknown task {task!r}; this model's tasks: {', '.join(known)}")
    return [task for task in known if task in wanted or not wanted]


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors say the key of the configuration whose data they are of."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def expert_channels(backbone: str, channels: int) -> int:
    """Channels of the experts: 0 for a dense backbone, else those of the configuration.

    Raises:
        ConfigError: Unknown backbone, or more than it is wide.
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
