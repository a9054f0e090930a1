"""The images that a prediction is asked for, and where their results go."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s5.data.errors import DataError
from s5.data.folders import find_images
from s5.data.image_formats import detect_format
from s5.data.splits import IMAGE_EXTENSIONS
from s5.data.submission import SETTINGS_FILE

MAGIC = "*?["


@dataclass(frozen=True)
class Source:
    """One image to predict.

    Attributes:
        path: the file.
        name: path of its results below their folder, without extension.
        is_tiff: whether it is a TIFF, judged by its content.
    """

    path: Path
    name: Path
    is_tiff: bool


def find_sources(given: Sequence[str], out: Path) -> list[Source]:
    """The images of folders (with their subfolders), files or glob patterns; of each ordered by name.

    Names are relative to the folder, or to the part of the pattern before its first wildcard; hidden files
    and earlier results in ``out`` are left out.

    Raises:
        DataError: nothing found, a folder is ``out`` itself, or two images whose results would have the same
            name.
    """
    sources: dict[Path, Source] = {}
    for source in (source for each in given for source in _sources(each, out)):
        other = sources.setdefault(source.name, source)
        if other.path != source.path and other.path.resolve() != source.path.resolve():
            raise DataError(
                f"{other.path} and {source.path}: their results would have the same name; rename one"
            )
    return [*sources.values()]


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
        root = _fixed_part(path)
        results = _result_folders(out, root)
        paths = map(Path, glob.iglob(given, recursive=True))
        found = (p for p in paths if p.name.lower().endswith(IMAGE_EXTENSIONS) and p.is_file())
        files = sorted(p for p in found if not results.intersection(_folders_of(p)))
    else:
        raise DataError(f"{given}: no such file or folder, and no pattern with * or ?")
    if not files:
        raise DataError(f"{given}: no images in it; files that end in {', '.join(IMAGE_EXTENSIONS)} are")
    return [Source(file, file.relative_to(root).with_suffix(""), _is_tiff(file)) for file in files]


def _result_folders(out: Path, root: Path) -> set[Path]:
    """Folders of which nothing is predicted: ``out`` below ``root``, else the tasks' folders in it."""
    out, root = out.resolve(), root.resolve()
    if root in out.parents:
        return {out}
    return {settings.parent for settings in out.glob(f"*/{SETTINGS_FILE}")}


def _folders_of(path: Path) -> Sequence[Path]:
    return (Path(os.path.realpath(path.parent)) / path.name).parents


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return detect_format(file.read(16)) == "tiff"
    except OSError:  # it is reported when it is read
        return False


def _fixed_part(pattern: Path) -> Path:
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in MAGIC))
    return Path(*parts[:first])
