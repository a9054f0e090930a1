"""Curate unlabeled images: choose reliable and diverse patches for S4P.

    python -m s5.curate run CONFIG       all steps; what is finished is kept
    python -m s5.curate index CONFIG     find images and cut them into patches (windows, nothing is copied)
    python -m s5.curate score CONFIG     entropy, pseudo-label and feature of every patch
    python -m s5.curate cluster CONFIG   K-Means on the labeled patches, nearest cluster of every patch
    python -m s5.curate select CONFIG    lowest entropy first, with a quota for every cluster
    python -m s5.curate write CONFIG     split, pseudo-labels, table and report

Several processes share the score step: bash S4_Pretrain/scripts/curate.sh CONFIG. See docs/curation.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s5.command import run_command
from s5.curate import STEPS, curate
from s5.curate.config import CurateConfig
from s5.prediction.command import start
from s5.training.config import load_config


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m s5.curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("step", choices=("run", *STEPS))
    parser.add_argument("config", type=Path, help="configuration, such as S4_Pretrain/configs/curate.yaml")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override values, such as select.count=1000",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)

    def command() -> int:
        cfg = load_config(CurateConfig, args.config, args.cfg_options)
        steps = STEPS if args.step == "run" else (args.step,)
        curate(cfg, start(args.device), steps)
        return 0

    return run_command(command, repeatable=True)


if __name__ == "__main__":
    sys.exit(main())
