"""Cut datasets into patches and write their split files.

    python -m s5.data.prepare isaid --src DIR --out DATA_ROOT
    python -m s5.data.prepare vaihingen --src DIR_OR_ZIP --out DATA_ROOT      (potsdam, loveda, openearthmap)
    python -m s5.data.prepare dota --src DIR --out DATA_ROOT      (dior_r)
    python -m s5.data.prepare unlabeled --src DIR --out DATA_ROOT --name NAME
    python -m s5.data.prepare labeled --images DIR --masks DIR --labels TABLE --out DATA_ROOT --name NAME

Can be interrupted and restarted at any time: finished files are skipped.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from s5.command import run_command, usable_cpus
from s5.data.datasets import DATASETS
from s5.data.prepare.detection import add_objects_arguments, plan_objects
from s5.data.prepare.own_data import (
    LABELED,
    UNLABELED,
    add_labeled_arguments,
    add_unlabeled_arguments,
    plan_labeled,
    plan_unlabeled,
)
from s5.data.prepare.pipeline import Plan, prepare
from s5.data.prepare.segmentation import add_dataset_arguments, plan_dataset

_Command = tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Plan]]


def _commands() -> Iterator[_Command]:
    """Name, help, arguments and plan of each command: datasets with masks, own folders, oriented objects."""
    for name, dataset in DATASETS.items():
        if dataset.tables:
            yield (
                name,
                dataset.summary,
                partial(add_dataset_arguments, dataset=dataset),
                partial(plan_dataset, dataset),
            )
    yield "unlabeled", UNLABELED, add_unlabeled_arguments, plan_unlabeled
    yield "labeled", LABELED, add_labeled_arguments, plan_labeled
    for name, dataset in DATASETS.items():
        if not dataset.tables:
            yield (
                name,
                dataset.summary,
                partial(add_objects_arguments, dataset=dataset),
                partial(plan_objects, dataset),
            )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `plan` of the result is the function that creates the plan."""
    parser = argparse.ArgumentParser(
        prog="python -m s5.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET")
    for name, summary, add_arguments, plan in _commands():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_arguments(command)
        command.add_argument("--workers", type=int, default=usable_cpus(), help="processes (default: CPUs)")
        command.set_defaults(plan=plan)
    return parser.parse_args(argv)


def _prepare(args: argparse.Namespace) -> int:
    plan = args.plan(args)
    outcome = prepare(plan, args.workers)
    print("\n".join(text for text in (outcome.summary(), plan.usage()) if text))
    return 0 if all(outcome.lists.values()) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 error or an empty list, 130 interrupted."""
    args = parse_args(argv)
    return run_command(lambda: _prepare(args), repeatable=True)


if __name__ == "__main__":
    sys.exit(main())
