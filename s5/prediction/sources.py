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
from s5.data.references import exists, find
from s5.data.splits import IMAGE_EXTENSIONS
from s5.errors import DataError

logger = logging.getLogger(__name__)

MAGIC = "*?["
SETTINGS_FILE = "prediction.yaml"  # records the settings, beside the results of a task


@dataclass(frozen=True)
class Source:
    """One image to predict.

    Attributes:
        path: The file.
        name: Relative path of its results, without extension.
        is_tiff: Whether its content is a TIFF.
    """

    path: Path
    name: Path
    is_tiff: bool


def find_sources(given: Sequence[str], out: Path) -> list[Source]:
    """Find the images of folders (recursively), files, references or glob patterns, each ordered by name.

    A name that exists is taken literally, even if it contains brackets, and so are the leading folders of a
    pattern as far as they exist. Names of results are relative to the folder, or to these leading folders of
    the pattern. Results that would have the same name get a suffix. Hidden files, thumbnails, recycle bins
    and earlier results in `out` are skipped.

    Raises:
        DataError: There are no images, a folder is `out` itself, or two results would have the same name even
            with a suffix.
    """
    listed = [source for each in given for source in _sources(each, out)]
    count = Counter(source.name for source in listed)
    sources: dict[tuple[Path, Path | None], Source] = {}  # a file given twice is one source
    for source in listed:
        real = source.path.resolve() if count[source.name] > 1 else None
        sources.setdefault((source.name, real), source)
    return _with_unique_names([*sources.values()])


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    """Add a suffix to equal names."""
    names = [str(source.name) for source in sources]
    # The suffix is derived from the file's path below the given folder, so that it does not depend on how the
    # folder is given. Files of several folders can agree in it, and differ in their full paths only.
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
            "%d images share their name with another; their results get a suffix: those of %s are named %s, "
            "those of %s %s",
            *(len(changed), sources[first].path, marked[first], sources[second].path, marked[second]),
        )
    return [replace(source, name=Path(name)) for source, name in zip(sources, marked, strict=True)]


def _sources(given: str, out: Path) -> list[Source]:
    path = Path(given)
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise DataError(
                f"{given} is also the folder of the results (--out), which is not searched for images; "
                f"choose another folder for the results, such as {path / 'predictions'}"
            )
        root, files = path, find_images(path, leave_out=out)
    elif path.is_file():
        root, files = path.parent, [path]
    elif (reference := find(path)) is not None and exists(path):
        return [Source(path, Path(reference.stem()), is_tiff(path))]
    elif any(c in given for c in MAGIC):
        root, pattern = _divided(path)
        results = _result_folders(out, root)
        paths = (root / name for name in glob.iglob(pattern, root_dir=root, recursive=True))
        images = (p for p in paths if p.name.lower().endswith(IMAGE_EXTENSIONS) and p.is_file())
        files = sorted(p for p in images if not results.intersection(_folders_of(p)))
        files = without_system_files(files, root)
    else:
        raise DataError(f"{given}: no such file or folder, and not a pattern with * or ?")
    if not files:
        hint = ". In a pattern, write a literal bracket as [[]" if "[" in given and not path.is_dir() else ""
        raise DataError(
            f"{given}: no images found; images are files that end in {', '.join(IMAGE_EXTENSIONS)}{hint}"
        )
    return [Source(file, file.relative_to(root).with_suffix(""), is_tiff(file)) for file in files]


def _result_folders(out: Path, root: Path) -> set[Path]:
    """Folders whose images are skipped: `out` if it is below `root`, otherwise the tasks' folders in it."""
    out, root = out.resolve(), root.resolve()
    if root in out.parents:
        return {out}
    return {settings.parent for settings in out.glob(f"*/{SETTINGS_FILE}")}


def _folders_of(path: Path) -> Sequence[Path]:
    return (Path(os.path.realpath(path.parent)) / path.name).parents


def _divided(pattern: Path) -> tuple[Path, str]:
    """Split a pattern into its leading folders, as far as they literally exist, and the rest."""
    parts = pattern.parts
    count = 0
    while count < len(parts) - 1 and Path(*parts[: count + 1]).is_dir():
        count += 1
    return Path(*parts[:count]), os.path.join(*parts[count:])
