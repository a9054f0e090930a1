"""Generate aerial-like scenes with masks and rotated boxes.

    python -m scenes --out DIR

Writes images, masks, DOTA label files and split files to DIR; existing scenes are kept.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from s5.command import run_command, usable_cpus
from scenes.dataset import PARTS, Request, write_dataset


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="data root to write to")
    helps = {
        "labeled": "scenes with labels for training",
        "unlabeled": "scenes without labels",
        "val": "scenes with labels for validation",
        "size": "image side in pixels",
        "seed": "seed of all scenes",
    }
    for field in fields(Request):
        text = f"{helps[field.name]} (default {field.default})"
        parser.add_argument(f"--{field.name}", type=int, default=field.default, metavar="N", help=text)
    parser.add_argument(
        "--workers", type=int, default=usable_cpus(), metavar="N", help="processes (default: one per CPU)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace scenes generated with other parameters"
    )
    return parser


def _generate(args: argparse.Namespace) -> int:
    start = time.monotonic()
    request = Request(**{field.name: getattr(args, field.name) for field in fields(Request)})
    written, kept = write_dataset(args.out, request, args.workers, args.overwrite)
    print(f"{args.out}: {written} scenes written in {time.monotonic() - start:.1f} s, {kept} existed already")
    for name, part in PARTS.items():
        print(f"  {args.out / part.split}: {getattr(request, name)} scenes")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 error, 130 interrupted."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _generate(args), repeatable=True)


if __name__ == "__main__":
    sys.exit(main())
