"""The outermost layer of a command: its common options, and errors without a traceback."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from s5.data.command import escape_console
from s5.data.errors import DataError
from s5.data.loader import explain_death
from s5.engine.checkpoint import CheckpointError
from s5.engine.config import ConfigError
from s5.engine.hooks.safety import NonFiniteLossError, SignalInterrupt
from s5.engine.launch import LaunchError, finish
from s5.models.variants import VARIANTS
from s5.ops.attention import BackendError
from s5.ops.mmcv_ext import ExtensionError

USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    LaunchError,
    NonFiniteLossError,
    ExtensionError,
    BackendError,
)

# What PyTorch puts before the message of an error in a loader worker.
FROM_WORKER = re.compile(r"\ACaught \w+ in DataLoader worker.*^[\w.]+Error: ", re.DOTALL | re.MULTILINE)


def command_parser(
    description: str, config: Path, backbones: Sequence[str] = tuple(VARIANTS), default: str = "vit_b"
) -> argparse.ArgumentParser:
    """A parser with the options that all commands of a tree share.

    Args:
        description: the module's docstring.
        config: default configuration.
        backbones: names that ``--backbone`` takes.
        default: the backbone without it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=str(config), help="YAML configuration")
    parser.add_argument("--backbone", default=default, choices=backbones)
    add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """The options of all commands of all trees; ``aliases`` are further names of ``--cfg-options``."""
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


def add_init_bands_option(parser: argparse.ArgumentParser) -> None:
    """``--init-bands R,G,B``, short for ``--cfg-options init_bands=R,G,B``, for commands that train."""
    parser.add_argument(
        "--init-bands",
        dest="cfg_options",
        action="append",
        type=lambda text: f"init_bands=[{text}]",
        metavar="R,G,B",
        help="channels of the initial weights' images that are red, green and blue, counted from 1: 3,2,1",
    )


def add_resume_option(parser: argparse.ArgumentParser) -> None:
    """``--resume [PATH]``, for commands that train."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="PATH",
        help="go on from the latest checkpoint of the work folder, or from PATH",
    )


def true_or_false(text: str) -> bool:
    """``True`` or ``False`` of a command line, in any case.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


def run_command(main: Callable[[], int]) -> int:
    """Run ``main`` and return its exit code.

    It is 1 after an error that its message explains, 130 after Ctrl-C, 128 + n after another signal n.
    """
    escape_console()
    try:
        return main()
    except USER_ERRORS as error:
        print("error:", FROM_WORKER.sub("", str(error)).rstrip(), file=sys.stderr)
        return 1
    except RuntimeError as error:
        explanation = explain_death(error)
        if explanation is None:
            raise
        print("error:", explanation, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return 128 + (error.number if isinstance(error, SignalInterrupt) else signal.SIGINT)
    finally:
        finish()
