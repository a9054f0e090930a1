"""Run all measurements: `python -m benchmarks` prints the tables of `docs/benchmarks.md`."""

import argparse
from collections.abc import Sequence

import torch

from benchmarks import (
    backbones,
    curation,
    detection_step,
    loader,
    mdf_step,
    references,
    rotated,
    s4p_step,
    sliding,
    steps,
)

BENCHMARKS = {
    "loader": loader.run,
    "references": references.run,
    "step": s4p_step.BENCHMARK.run,
    "mdf": mdf_step.BENCHMARK.run,
    "detection": detection_step.BENCHMARK.run,
    "backbones": backbones.run,
    "sliding": sliding.run,
    "rotated": rotated.run,
    "curation": curation.run,
}
OPTIONS = (loader, references, steps, backbones, sliding, rotated, curation)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the selected benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", choices=BENCHMARKS, help="benchmark to run (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for module in OPTIONS:
        module.add_arguments(parser)
    args = parser.parse_args(argv)
    for name in [args.only] if args.only else BENCHMARKS:
        print(f"{BENCHMARKS[name](args)}\n", flush=True)


if __name__ == "__main__":
    main()
