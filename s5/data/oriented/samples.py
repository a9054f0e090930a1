"""Images paired with their annotation files, and all their objects in a few arrays."""

import logging
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from s5.data.errors import DataError, SplitError, shorten
from s5.data.folders import files_by_name
from s5.data.image_io import image_size
from s5.data.oriented.annotations import (
    ANNOTATION_EXTENSIONS,
    AnnotationError,
    AnnotationReader,
    Objects,
    make_objects,
)
from s5.data.oriented.merge import place_of
from s5.data.splits import IMAGE_EXTENSIONS, Split, explain_foreign, format_line

logger = logging.getLogger(__name__)

Folders = Path | str | Sequence[Path | str]
Lists = Folders | None
SHOWN = 5  # names or messages in a message
_CLASS_LISTS = ("classes.txt", "predefined_classes.txt")
_ENDING = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*IMAGE_EXTENSIONS, *ANNOTATION_EXTENSIONS)))})$", re.IGNORECASE
)


class AnnotatedImages:
    """The images of a dataset in the order of their names, with their objects.

    An image and its annotation have the same path below their folders, extension aside: this path is the
    image's name. Every annotation is read here, so that what is wrong is said before anything runs. Objects
    without area are left out with a warning.

    Args:
        images: Folder of the images, or several.
        annotations: Folder of the annotation files, or several; None for images without ground truth.
        classes: Names of the classes, in the order of the labels.
        split: A file that lists the images to take, one a line, by name or by path, or several; all by
            default.
        leave_out: Classes that the annotations may have, but of which no object is taken.

    Raises:
        SplitError: A folder or the split is missing or empty, two files have one name, or an image has no
            annotation or the other way round.
        AnnotationError: Annotations cannot be read; names the first ones.
        DataError: No image has an object, or the classes are no list of names.
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
                f"{', '.join(self.classes)}. Are these the right annotations?"
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
        # Plain arrays: forked workers share their pages as long as nobody writes to them.
        self._offsets = np.cumsum([0, *map(len, objects)])
        self._polygons, self._labels, self._difficult = (
            np.concatenate([getattr(part, name) for part in objects])
            for name in ("polygons", "labels", "difficult")
        )


def without_class_list(texts: Mapping[str, Path], images: Container[str]) -> dict[str, Path]:
    """Annotation files by name without `classes.txt`, where tools put the names of the classes.

    Args:
        texts: The files by the name of their image.
        images: Names of the images; a file of one of them is an annotation.
    """
    lists = {name: path for name, path in texts.items() if path.name in _CLASS_LISTS and name not in images}
    for path in lists.values():
        logger.info("%s: a list of classes, not an annotation; it is left out", path)
    return {name: path for name, path in texts.items() if name not in lists}


def read_all(reader: AnnotationReader, paths: Iterable[Path | None]) -> list[Objects]:
    """The objects of annotation files; none for None. Warns of objects without area, which are left out.

    Raises:
        AnnotationError: Files cannot be read; names the first ones.
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
        logger.warning("%d objects are left out, the first:\n%s", len(without_area), _first(without_area))
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
    """Names that a list file takes."""
    names = {sample.name: _name_of(sample.name, found) for sample in Split(split, split.parent)}
    if missing := [line for line, name in names.items() if name is None]:
        folder = next(iter(found.values())).parent
        reason = explain_foreign(missing[0])
        raise SplitError(
            f"{split}: {_some(missing, 'images')} that it lists are not in {folder}{reason and f'; {reason}'}"
        )
    return {name for name in names.values() if name is not None}


def _name_of(line: str, found: Mapping[str, Path]) -> str | None:
    """The image that a line names: by its name, or by a path that ends in its name."""
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
            f"{folder}: {'; '.join(problems)}. Image and annotation have the same name; add what is missing, "
            "take the others away, or give a split file that lists the images to take"
        )


def _some(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what} ({shorten(names)})"


def whole_names(names: Iterable[str]) -> list[str]:
    """Names of the images that windows are of, sorted; an image that is no window stays itself."""
    return sorted({place_of(name).image for name in names})


def read_whole(
    folder: Path, windows: Iterable[str], classes: Sequence[str], leave_out: Sequence[str] = ()
) -> dict[str, Objects]:
    """The objects of the whole images that windows are of, in pixels of the whole images.

    Args:
        folder: Has `<image>.txt` (DOTA) of each image, empty of one without objects.
        windows: Names of the windows.
        classes: Names of the classes, in the order of the labels.
        leave_out: Classes that the files may have, but of which no object is taken.

    Returns:
        By name of the image.

    Raises:
        SplitError: The folder or files are missing; names the first ones.
        AnnotationError: Files cannot be read; names the first ones.
    """
    if not folder.is_dir():
        raise SplitError(f"no folder {folder}; give that of the whole images' labels")
    files = {name: folder / f"{name}.txt" for name in whole_names(windows)}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise SplitError(
            f"labels of {len(missing)} of {len(files)} full images are missing: {shorten(missing)}. Add them "
            "(an image without objects has an empty file), or remove `whole` to score the windows separately"
        )
    objects = read_all(AnnotationReader(classes, leave_out), files.values())
    return dict(zip(files, objects, strict=True))
