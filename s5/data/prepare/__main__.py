"""Cut data sets into patches and write their split files.

    python -m s5.data.prepare isaid --src DIR --out DATA_ROOT
    python -m s5.data.prepare unlabeled --src DIR --out DATA_ROOT --name NAME

May be stopped and started again at will: what is finished is not done again.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import FrameType

from s5.data.errors import DataError
from s5.data.prepare.isaid import Isaid
from s5.data.prepare.parallel import default_workers
from s5.data.prepare.pipeline import prepare
from s5.data.prepare.recipe import Recipe
from s5.data.prepare.unlabeled import Unlabeled

RECIPES: tuple[type[Recipe], ...] = (Isaid, Unlabeled)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s5.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET")
    for recipe in RECIPES:
        command = commands.add_parser(recipe.command, help=recipe.help, description=recipe.help)
        recipe.add_arguments(command)
        command.add_argument(
            "--workers", type=int, default=default_workers(), help="processes (default: CPUs)"
        )
        command.set_defaults(recipe=recipe)
    return parser


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 error or an empty list, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        recipe = args.recipe(**{field.name: getattr(args, field.name) for field in fields(args.recipe)})
        outcome = prepare(recipe, args.workers)
        print(outcome.summary())
        return 0 if all(outcome.lists.values()) else 1
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. What is finished is kept; run the same command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
