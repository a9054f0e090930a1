"""Find the images to predict and name their results."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s5.data.folders import find_images, tell_apart, without_system_files
from s5.data.image_formats import is_tiff
from s5.data.splits import IMAGE_EXTENSIONS
from s5.errors import DataError

logger = logging.getLogger(__name__)

MAGIC = "*?["
SETTINGS_FILE = "prediction.yaml"  # beside the results of a task: how they were made


@dataclass(frozen=True)
class Source:
    """One image to predict.

    Attributes:
        path: The file.
        name: Path of its results below their folder, without extension.
        is_tiff: Whether it is a TIFF, judged by its content.
    """

    path: Path
    name: Path
    is_tiff: bool


def find_sources(given: Sequence[str], out: Path) -> list[Source]:
    """The images of folders (with their subfolders), files or glob patterns; of each ordered by name.

    A name that exists is taken literally, even with brackets in it, and so are the leading folders of a
    pattern as far as they exist. Names of results are relative to the folder, or to these leading folders of
    the pattern. Images whose results would have the same name get a mark in it. Hidden files, thumbnails,
    recycle bins and earlier results in `out` are left out.

    Raises:
        DataError: Nothing found, a folder is `out` itself, or two results would have the same name although
            marked.
    """
    found = [source for each in given for source in _sources(each, out)]
    count = Counter(source.name for source in found)
    sources: dict[tuple[Path, Path | None], Source] = {}  # a file that is given twice is one source
    for source in found:
        real = source.path.resolve() if count[source.name] > 1 else None
        sources.setdefault((source.name, real), source)
    return _told_apart([*sources.values()])


def _told_apart(sources: Sequence[Source]) -> list[Source]:
    """The sources, those of equal names with a mark in them."""
    names = [str(source.name) for source in sources]
    # The mark is made of the file's name below the given folder, so that it does not depend on how the folder
    # is given. Files of several folders can agree in it, and only their whole paths differ.
    marked = tell_apart(names, [f"{source.name}{source.path.suffix}" for source in sources])
    marked = tell_apart(marked, [str(source.path.resolve()) for source in sources])
    owners: dict[str, Source] = {}
    for name, source in zip(marked, sources, strict=True):
        if (other := owners.setdefault(name, source)) is not source:
            raise DataError(
                f"{other.path} and {source.path}: their results would have the same name, {name}; rename one"
            )
    if changed := [i for i, name in enumerate(names) if name != marked[i]]:
        count = Counter(names)
        shared = next(name for name in names if count[name] > 1)
        first, second = [i for i in changed if names[i] == shared][:2]
        logger.info(
            "%d images share their name with another; a mark tells their results apart: those of %s are "
            "named %s, of %s %s",
            *(len(changed), sources[first].path, marked[first], sources[second].path, marked[second]),
        )
    return [replace(source, name=Path(name)) for source, name in zip(sources, marked, strict=True)]


def _sources(given: str, out: Path) -> list[Source]:
    path = Path(given)
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise DataError(
                f"{given} is the folder of the results (--out) as well, where no images are looked for; "
                f"choose another for the results, as {path / 'predictions'}"
            )
        root, files = path, find_images(path, leave_out=out)
    elif path.is_file():
        root, files = path.parent, [path]
    elif any(c in given for c in MAGIC):
        root, pattern = _divided(path)
        results = _result_folders(out, root)
        paths = (root / name for name in glob.iglob(pattern, root_dir=root, recursive=True))
        found = (p for p in paths if p.name.lower().endswith(IMAGE_EXTENSIONS) and p.is_file())
        files = sorted(p for p in found if not results.intersection(_folders_of(p)))
        files = without_system_files(files, root)
    else:
        raise DataError(f"{given}: no such file or folder, and no pattern with * or ?")
    if not files:
        hint = (
            ". In a pattern, a bracket of a name is written [[]" if "[" in given and not path.is_dir() else ""
        )
        raise DataError(
            f"{given}: no images in it; files that end in {', '.join(IMAGE_EXTENSIONS)} are images{hint}"
        )
    return [Source(file, file.relative_to(root).with_suffix(""), is_tiff(file)) for file in files]


def _result_folders(out: Path, root: Path) -> set[Path]:
    """Folders whose images are left out: `out` below `root`, else the tasks' folders in it."""
    out, root = out.resolve(), root.resolve()
    if root in out.parents:
        return {out}
    return {settings.parent for settings in out.glob(f"*/{SETTINGS_FILE}")}


def _folders_of(path: Path) -> Sequence[Path]:
    return (Path(os.path.realpath(path.parent)) / path.name).parents


def _divided(pattern: Path) -> tuple[Path, str]:
    """The first folders of a pattern, as far as they exist under these very names, and the rest of it."""
    parts = pattern.parts
    count = 0
    while count < len(parts) - 1 and Path(*parts[: count + 1]).is_dir():
        count += 1
    return Path(*parts[:count]), os.path.join(*parts[count:])
