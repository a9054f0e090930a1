"""Find files in folder trees, except those created by file systems and file managers, and pair them."""

import fnmatch
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from s5.data.splits import IMAGE_EXTENSIONS, Split, format_line
from s5.errors import SplitError, shorten

logger = logging.getLogger(__name__)

SYSTEM_NAMES = (
    *("@eaDir", "SYNOPHOTO_THUMB*", "SYNOFILE_THUMB*", "#recycle", "#snapshot"),  # Synology
    *("@Recycle", "@Recently-Snapshot", ".@__thumb"),  # QNAP
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "Thumbs.db", "desktop.ini"),  # Windows
    *("__MACOSX", "._*", ".DS_Store", ".Trashes", ".Spotlight-V100", ".fseventsd"),  # macOS
    *(".Trash", ".Trash-*", "lost+found"),  # Linux
)
"""Case-insensitive patterns for thumbnails, recycle bins and other files that are not data."""

_SYSTEM = re.compile("|".join(map(fnmatch.translate, SYSTEM_NAMES)), re.IGNORECASE)


def is_system_name(name: str) -> bool:
    """Whether a file or folder name matches `SYSTEM_NAMES`."""
    return _SYSTEM.match(name) is not None


def find_images(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All image files below `folder`, see `find_files`."""
    return find_files(folder, leave_out, IMAGE_EXTENSIONS)


def find_files(folder: Path, leave_out: Path | None = None, endings: tuple[str, ...] = ("",)) -> list[Path]:
    """All files below `folder`, sorted; follows links.

    Skips hidden files, and thumbnails, recycle bins and the like (`SYSTEM_NAMES`), whose number is logged.

    Args:
        folder: Folder to search.
        leave_out: Folder to skip.
        endings: Lower-case endings of the file names to find; case is ignored.
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
    """Drop the files that `find_files` would skip for a system name below `root`."""
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


def files_by_name(folders: Sequence[Path], endings: tuple[str, ...], what: str) -> dict[str, Path]:
    """Find files by their path below their folder, without extension.

    Args:
        folders: Folders to search, see `find_files`.
        endings: Endings of the file names, in lower case.
        what: What the files are, for messages: `images`.

    Raises:
        SplitError: A folder is missing, there are no files, or two files have the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise SplitError(f"{folder}: no such folder; give the folder of the {what}")
        for path in find_files(folder, endings=endings):
            other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
            if other is not path:
                raise SplitError(f"{other} and {path} have the same name; keep one of them")
    if not found:
        where = " and ".join(map(str, folders))
        raise SplitError(f"{where}: no {what} ({', '.join(endings)}); give the folder of the {what}")
    return found


def tell_apart(stems: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Make stems unique: those that coincide (`a.jpg` and `a.png`) get a suffix.

    The suffix depends only on the key, so that it is the same in every run.

    Args:
        stems: Names without extension.
        keys: Distinguish files with the same stem, such as their paths.
    """
    count = Counter(stems)
    return [
        stem if count[stem] == 1 else f"{stem}-{_suffix(key)}" for stem, key in zip(stems, keys, strict=True)
    ]


def _suffix(key: str) -> str:
    return blake2b(key.encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _pattern(name: str) -> str:
    """The pattern of `SYSTEM_NAMES` that a name matches."""
    return next(p for p in SYSTEM_NAMES if fnmatch.fnmatchcase(name.lower(), p.lower()))


def _count(folder: str, endings: tuple[str, ...]) -> int:
    return sum(name.lower().endswith(endings) for _, _, names in os.walk(folder) for name in names)


def _log_left_out(folder: Path, system: Counter[str]) -> None:
    if total := system.total():
        kinds = shorten([f"{count} {name}" for name, count in system.most_common()])
        logger.info("%s: skipped %d thumbnails, recycled files and the like (%s)", folder, total, kinds)


def _log_error(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # optional folders may be missing
        logger.warning("%s: cannot be listed (%s); its files are skipped", error.filename, error.strerror)


def pair_folders(images: str | Path, masks: str | Path, root: str | Path) -> Split:
    """Pair the images of one folder with the masks of another by name.

    Image and mask have the same path below their folders, apart from the extension: `images/a/1.tif` and
    `masks/a/1.png`. Hidden files and files that are not images are skipped.

    Args:
        images: Folder of the images, relative to `root` unless absolute.
        masks: Folder of the masks, likewise.
        root: Data root; paths below it are kept relative to it.

    Returns:
        The pairs, sorted by name; the path of the split, for messages, is the folder of the images.

    Raises:
        SplitError: A folder is missing or empty, a file has no partner, or two files share a stem.
    """
    root = Path(root).absolute()
    found_images = files_by_name([root / images], IMAGE_EXTENSIONS, "images")
    found_masks = files_by_name([root / masks], IMAGE_EXTENSIONS, "masks")
    _require_partners(found_images, found_masks, root / images, root / masks)
    lines = [
        format_line(_relative(found_images[stem], root), _relative(found_masks[stem], root))
        for stem in sorted(found_images)
    ]
    return Split.from_lines(lines, root, root / images)


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Divide a split at random into training and validation images.

    The choice depends only on the image names, not on their order. Each part has at least one image, and an
    image that is listed more than once is in one part only. Tiles of the same scene may end up in both parts;
    if that matters, write two split files.

    Args:
        split: Two images or more.
        share: Share of the images to hold out, between 0 and 1.

    Returns:
        Training and validation split, both in the order of `split`.

    Raises:
        SplitError: Fewer than two images, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise SplitError(f"{split.path}: the share to hold out must be between 0 and 1, got {share}")
    names = [split.name(index) for index in range(len(split))]
    ranked = sorted(set(names), key=_rank)
    if len(ranked) < 2:
        raise SplitError(f"{split.path}: one image cannot be divided into training and validation; add more")
    held = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    train, val = (
        [split.line(index) for index, name in enumerate(names) if (name in held) == is_val]
        for is_val in (False, True)
    )
    return Split.from_lines(train, split.root, split.path), Split.from_lines(val, split.root, split.path)


def _require_partners(
    images: dict[str, Path], masks: dict[str, Path], image_folder: Path, mask_folder: Path
) -> None:
    problems = [
        f"{len(alone)} {what} have no partner in {other}: {shorten(alone)}"
        for what, alone, other in (
            (f"images in {image_folder}", _names(images, masks), mask_folder),
            (f"masks in {mask_folder}", _names(masks, images), image_folder),
        )
        if alone
    ]
    if problems:
        raise SplitError(
            f"{'; '.join(problems)}. Image and mask must have the same name, apart from the "
            "extension; remove the other files, or write a split file"
        )


def _names(found: dict[str, Path], others: dict[str, Path]) -> list[str]:
    return [found[stem].name for stem in sorted(found.keys() - others.keys())]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _rank(name: str) -> bytes:
    """Position of an image in the order in which images are held out, the same in every run."""
    return blake2b(f"0/{name}".encode(errors="surrogateescape"), digest_size=8).digest()
