"""Find files in folder trees, without what file systems and file managers put there."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from s5.data.splits import IMAGE_EXTENSIONS

logger = logging.getLogger(__name__)

SYSTEM_NAMES = (
    *("@eaDir", "SYNOPHOTO_THUMB*", "SYNOFILE_THUMB*", "#recycle", "#snapshot"),  # Synology
    *("@Recycle", "@Recently-Snapshot", ".@__thumb"),  # QNAP
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "Thumbs.db", "desktop.ini"),  # Windows
    *("__MACOSX", "._*", ".DS_Store", ".Trashes", ".Spotlight-V100", ".fseventsd"),  # macOS
    *(".Trash", ".Trash-*", "lost+found"),  # Linux
)
"""Patterns for the names, in any case, of thumbnails, recycle bins and other files that are not data."""

_SYSTEM = re.compile("|".join(map(fnmatch.translate, SYSTEM_NAMES)), re.IGNORECASE)
_SHOWN = 5  # names in a message


def is_system_name(name: str) -> bool:
    """Whether a file or folder is one of :data:`SYSTEM_NAMES`."""
    return _SYSTEM.match(name) is not None


def find_images(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All image files below ``folder``, see :func:`find_files`."""
    return find_files(folder, leave_out, IMAGE_EXTENSIONS)


def find_files(folder: Path, leave_out: Path | None = None, endings: tuple[str, ...] = ("",)) -> list[Path]:
    """All files below ``folder``, sorted; follows links.

    Hidden files are left out, and so are thumbnails, recycle bins and the like (:data:`SYSTEM_NAMES`), the
    number of which is logged.

    Args:
        folder: where to look.
        leave_out: folder that is not looked into.
        endings: of the names of the files that are meant, in lower case; case does not count.
    """
    found: list[Path] = []
    system: Counter[str] = Counter()
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_log_error):
        real = os.path.realpath(parent)
        if real in seen or (leave_out is not None and real == os.path.realpath(leave_out)):
            folders.clear()
            continue
        seen.add(real)
        for name in filter(is_system_name, folders):
            system[_pattern(name)] += _count(os.path.join(parent, name), endings)
        folders[:] = [name for name in folders if not (name.startswith(".") or is_system_name(name))]
        for name in (name for name in names if name.lower().endswith(endings)):
            if is_system_name(name):
                system[_pattern(name)] += 1
            elif not name.startswith("."):
                found.append(Path(parent, name))
    _log_left_out(folder, system)
    return sorted(found)


def without_system_files(paths: Iterable[Path], root: Path) -> list[Path]:
    """The files that :func:`find_files` would not leave out for a system name below ``root``."""
    kept: list[Path] = []
    system: Counter[str] = Counter()
    for path in paths:
        name = next(filter(is_system_name, path.relative_to(root).parts), None)
        if name is None:
            kept.append(path)
        else:
            system[_pattern(name)] += 1
    _log_left_out(root, system)
    return kept


def tell_apart(stems: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The stems; those that coincide (of ``a.jpg`` and ``a.png``) get a mark.

    The mark depends on nothing but the key, so that it is the same in every run.

    Args:
        stems: names without extension.
        keys: what tells files of the same stem apart, such as their paths.
    """
    count = Counter(stems)
    return [
        stem if count[stem] == 1 else f"{stem}-{_mark(key)}" for stem, key in zip(stems, keys, strict=True)
    ]


def _mark(key: str) -> str:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _pattern(name: str) -> str:
    """The one of :data:`SYSTEM_NAMES` that a name is."""
    return next(p for p in SYSTEM_NAMES if fnmatch.fnmatchcase(name.lower(), p.lower()))


def _count(folder: str, endings: tuple[str, ...]) -> int:
    return sum(name.lower().endswith(endings) for _, _, names in os.walk(folder) for name in names)


def _log_left_out(folder: Path, system: Counter[str]) -> None:
    if total := system.total():
        most = [f"{count} {name}" for name, count in system.most_common(_SHOWN)]
        more = " ..." if len(system) > _SHOWN else ""
        what = f"{', '.join(most)}{more}"
        logger.info(
            "%s: left out %d files of thumbnails, recycle bins and the like (%s)", folder, total, what
        )


def _log_error(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that need not be there
        logger.warning("%s: cannot be listed (%s); what is in it is left out", error.filename, error.strerror)
