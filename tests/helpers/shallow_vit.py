"""A `vit_t` of four blocks instead of twelve, the least that can feed the pyramid.

The networks of tests are so narrow that the time of a step or a checkpoint is that of the number of tensors,
not of their size. Commands that are started as users start them have the twelve blocks, unless they run in
`python -m tests.helpers.shallow_vit SCRIPT ARGUMENTS`.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from s5.backbones import ARCHITECTURES
from s5.backbones.vit import VARIANTS

SHALLOW = replace(VARIANTS["vit_t"], depth=4, out_blocks=(0, 1, 2, 3))


def install(shallow: bool = True) -> None:
    """Let the name `vit_t` stand for it in this process and its forks, or for what ships."""
    ARCHITECTURES["vit_t"] = SHALLOW if shallow else VARIANTS["vit_t"]


def is_installed() -> bool:
    return ARCHITECTURES["vit_t"] is SHALLOW


@contextmanager
def uninstalled() -> Iterator[None]:
    """Let the name stand for what ships, where a test depends on it or on what random weights find."""
    before = is_installed()
    install(False)
    try:
        yield
    finally:
        install(before)


if __name__ == "__main__":
    install()
    script = next(
        word for word in sys.argv[1:] if not word.startswith("-")
    )  # a launcher may add --local-rank
    sys.argv.remove(script)
    runpy.run_path(script, run_name="__main__")
