"""Cut datasets into patches and write their split files.

    python -m s5.data.prepare isaid --src DIR --out DATA_ROOT
    python -m s5.data.prepare vaihingen --src DIR_OR_ZIP --out DATA_ROOT      (potsdam, loveda, openearthmap)
    python -m s5.data.prepare dota --src DIR --out DATA_ROOT      (dior_r)
    python -m s5.data.prepare unlabeled --src DIR --out DATA_ROOT --name NAME
    python -m s5.data.prepare labeled --images DIR --masks DIR --labels TABLE --out DATA_ROOT --name NAME

May be stopped and started again at will: what is finished is not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from s5.command import run_command
from s5.data.prepare.dior_r import DiorR
from s5.data.prepare.dota import Dota
from s5.data.prepare.isaid import Isaid
from s5.data.prepare.isprs import Potsdam, Vaihingen
from s5.data.prepare.labeled import Labeled
from s5.data.prepare.loveda import LoveDA
from s5.data.prepare.openearthmap import OpenEarthMap
from s5.data.prepare.parallel import default_workers
from s5.data.prepare.pipeline import prepare
from s5.data.prepare.recipe import Recipe
from s5.data.prepare.unlabeled import Unlabeled

RECIPES: tuple[type[Recipe], ...] = (
    Isaid,
    Vaihingen,
    Potsdam,
    LoveDA,
    OpenEarthMap,
    Unlabeled,
    Labeled,
    DiorR,
    Dota,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s5.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET")
    for recipe in RECIPES:
        command = commands.add_parser(
            recipe.command, help=recipe.help, description=recipe.help, allow_abbrev=False
        )
        recipe.add_arguments(command)
        command.add_argument(
            "--workers", type=int, default=default_workers(), help="processes (default: CPUs)"
        )
        command.set_defaults(recipe=recipe)
    return parser


def _prepare(args: argparse.Namespace) -> int:
    recipe = args.recipe.from_arguments(args)
    outcome = prepare(recipe, args.workers)
    print("\n".join(text for text in (outcome.summary(), recipe.usage()) if text))
    return 0 if all(outcome.lists.values()) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 error or an empty list, 130 interrupted."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _prepare(args), repeatable=True)


if __name__ == "__main__":
    sys.exit(main())
