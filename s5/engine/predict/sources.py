"""The images that a prediction is asked for, and where their results go."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s5.data.errors import DataError
from s5.data.folders import find_images, without_system_files
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

    What exists under the name as given is meant literally, also with brackets in it; so are the first folders
    of a pattern, as far as they exist. Names of results are relative to the folder, or to these first folders
    of the pattern. Hidden files, thumbnails, recycle bins and earlier results in ``out`` are left out.

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


def _divided(pattern: Path) -> tuple[Path, str]:
    """The first folders of a pattern, as far as they exist under these very names, and the rest of it."""
    parts = pattern.parts
    count = 0
    while count < len(parts) - 1 and Path(*parts[: count + 1]).is_dir():
        count += 1
    return Path(*parts[:count]), os.path.join(*parts[count:])
