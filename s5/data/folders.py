"""Find files in folder trees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from s5.data.splits import IMAGE_EXTENSIONS


def find_images(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All image files below ``folder``, sorted; follows links, leaves out hidden files and ``leave_out``."""
    return [path for path in find_files(folder, leave_out) if path.name.lower().endswith(IMAGE_EXTENSIONS)]


def find_files(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All files below ``folder``, sorted; follows links, leaves out hidden ones and ``leave_out``."""
    return sorted(_walk(folder, leave_out))


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (leave_out is not None and real == os.path.realpath(leave_out)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
