"""Images paired with their annotation files; all objects are held in a few arrays."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from s5.data.folders import files_by_name
from s5.data.image_io import image_size
from s5.data.oriented.annotations import (
    ANNOTATION_EXTENSIONS,
    AnnotationError,
    AnnotationReader,
    Objects,
    make_objects,
    without_class_list,
)
from s5.data.oriented.merge import parse_window_name
from s5.data.splits import IMAGE_EXTENSIONS, Split, explain_foreign, format_line
from s5.errors import DataError, SplitError, shorten

logger = logging.getLogger(__name__)

Folders = Path | str | Sequence[Path | str]
Lists = Folders | None
SHOWN = 5  # names or messages in a message
_ENDING = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*IMAGE_EXTENSIONS, *ANNOTATION_EXTENSIONS)))})$", re.IGNORECASE
)


class AnnotatedImages:
    """The images of a dataset, sorted by name, with their objects.

    An image and its annotation have the same path below their folders, apart from the extension; this path is
    the name of the image. All annotations are read here, so that errors are raised before training. Objects
    without area are skipped with a warning.

    Args:
        images: One or several folders of images.
        annotations: One or several folders of annotation files; None for images without ground truth.
        classes: Class names, in the order of the labels.
        split: One or several files that list the images to use, one per line, by name or path; default: all.
        leave_out: Classes in the annotations to skip.

    Raises:
        SplitError: A folder or the split is missing or empty, two files have the same name, or an image has
            no annotation or vice versa.
        AnnotationError: Annotations cannot be read; the message lists the first ones.
        DataError: No image has an object, or the class names are invalid.
    """

    def __init__(
        self,
        images: Folders,
        annotations: Folders | None,
        classes: Sequence[str],
        split: Lists = None,
        leave_out: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        reader = AnnotationReader(classes, leave_out)
        folders = _listed(images)
        found = files_by_name(folders, IMAGE_EXTENSIONS, "images")
        names = sorted(found)
        if split is not None:
            names = sorted(set().union(*(_chosen(path, found) for path in _listed(split))))
        texts: dict[str, Path] = {}
        if annotations is not None:
            texts = files_by_name(_listed(annotations), ANNOTATION_EXTENSIONS, "annotations")
            texts = without_class_list(texts, found)
            _require_partners(names, found, texts, split)
        lines = [format_line(str(found[name]), str(texts[name]) if texts else None) for name in names]
        self.folders = " and ".join(map(str, folders))
        self._samples = Split.from_lines(lines, Path("/"), self.folders)
        self._names = Split.from_lines([f"{name}\t" for name in names], Path("/"), self.folders)
        self._pack(read_all(reader, (sample.mask for sample in self._samples)))
        if annotations is not None and not len(self._labels):
            raise DataError(
                f"{self.folders}: none of the {len(names)} images has an object of the classes "
                f"{', '.join(self.classes)}. Check the annotation folder and the classes"
            )

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def names(self) -> list[str]:
        """Names of all images, see `name`."""
        return [self.name(index) for index in range(len(self))]

    def name(self, index: int) -> str:
        """Path of an image below its folder, without extension."""
        return self._names.name(index)

    def path(self, index: int) -> Path:
        """The image file."""
        return self._samples.sample(index).image

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the header of the file."""
        return image_size(self.path(index))

    def objects(self, index: int) -> Objects:
        """All objects of an image."""
        part = slice(*self._offsets[index : index + 2].tolist())
        return Objects(self._polygons[part], self._labels[part], self._difficult[part])

    def counts(self) -> np.ndarray:
        """Objects of each class, int64 (K,)."""
        return np.bincount(self._labels, minlength=len(self.classes))

    def _pack(self, objects: Sequence[Objects]) -> None:
        # Plain arrays: forked workers share their pages as long as nothing writes to them.
        self._offsets = np.cumsum([0, *map(len, objects)])
        self._polygons, self._labels, self._difficult = (
            np.concatenate([getattr(part, name) for part in objects])
            for name in ("polygons", "labels", "difficult")
        )


def read_all(reader: AnnotationReader, paths: Iterable[Path | None]) -> list[Objects]:
    """Read the objects of annotation files, none for None; skip objects without area, with a warning.

    Raises:
        AnnotationError: Files cannot be read; the message lists the first ones.
    """
    objects: list[Objects] = []
    errors: list[str] = []
    without_area: list[str] = []
    for path in paths:
        try:
            read = make_objects() if path is None else reader.read(path, without_area)
        except AnnotationError as error:
            errors.append(str(error))
        else:
            objects.append(read)
    if without_area:
        logger.warning("%d objects skipped, the first:\n%s", len(without_area), _first(without_area))
    if errors:
        number = "" if len(errors) == 1 else f"{len(errors)} annotation files cannot be used, the first:\n"
        raise AnnotationError(number + _first(errors))
    return objects


def _first(messages: Sequence[str]) -> str:
    return "\n".join(messages[:SHOWN])


def _listed(folders: Folders) -> list[Path]:
    paths = [folders] if isinstance(folders, str | Path) else folders
    return [Path(path).absolute() for path in paths]


def _chosen(split: Path, found: Mapping[str, Path]) -> set[str]:
    """Names of the images listed in a file."""
    names = {sample.name: _name_of(sample.name, found) for sample in Split(split, split.parent)}
    if missing := [line for line, name in names.items() if name is None]:
        folder = next(iter(found.values())).parent
        reason = explain_foreign(missing[0])
        raise SplitError(
            f"{split}: {_some(missing, 'listed images')} are not in {folder}{reason and f'; {reason}'}"
        )
    return {name for name in names.values() if name is not None}


def _name_of(line: str, found: Mapping[str, Path]) -> str | None:
    """The image of a line, given by its name or a path that ends with its name."""
    parts = _ENDING.sub("", line).split("/")
    names = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((name for name in names if name in found), None)


def _require_partners(
    names: Sequence[str],
    images: Mapping[str, Path],
    texts: Mapping[str, Path],
    split: Lists,
) -> None:
    problems = []
    if lone := [images[name].name for name in names if name not in texts]:
        problems.append(f"{_some(lone, 'images')} without an annotation file (one without objects is empty)")
    if split is None and (lone := [texts[name].name for name in sorted(texts.keys() - images.keys())]):
        problems.append(f"{_some(lone, 'annotation files')} without an image")
    if problems:
        folder = next(iter(images.values())).parent
        raise SplitError(
            f"{folder}: {'; '.join(problems)}. Image and annotation must have the same name; add missing "
            "files, remove the others, or give a split file that lists the images to use"
        )


def _some(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what} ({shorten(names)})"


def whole_names(names: Iterable[str]) -> list[str]:
    """Names of the full images of windows, sorted; the name of an image that is not a window is kept."""
    return sorted({parse_window_name(name).image for name in names})


def read_whole(
    folder: Path, windows: Iterable[str], classes: Sequence[str], leave_out: Sequence[str] = ()
) -> dict[str, Objects]:
    """Read the objects of the full images of windows, in pixels of the full images.

    Args:
        folder: Folder with `<image>.txt` (DOTA) for each image, empty for an image without objects.
        windows: Names of the windows.
        classes: Class names, in the order of the labels.
        leave_out: Classes in the files to skip.

    Returns:
        Objects by image name.

    Raises:
        SplitError: The folder or files are missing; the message lists the first ones.
        AnnotationError: Files cannot be read; the message lists the first ones.
    """
    if not folder.is_dir():
        raise SplitError(f"{folder}: no such folder; give the folder of the full images' labels")
    files = {name: folder / f"{name}.txt" for name in whole_names(windows)}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise SplitError(
            f"labels of {len(missing)} of {len(files)} full images are missing: {shorten(missing)}. Add them "
            "(an image without objects has an empty file), or remove `whole` to score the windows separately"
        )
    objects = read_all(AnnotationReader(classes, leave_out), files.values())
    return dict(zip(files, objects, strict=True))
