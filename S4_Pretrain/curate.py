"""Curate unlabeled images for S4P: all steps of `python -m s5.curate`, in one or several processes.

    python curate.py CONFIG                                    one process
    torchrun --nproc_per_node 8 curate.py CONFIG               8 GPUs score
    python curate.py CONFIG --cfg-options select.count=10000   another number of patches

See docs/curation.md.
"""

import sys
from collections.abc import Sequence

from s5.curate.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps and return the exit code."""
    return command(["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
