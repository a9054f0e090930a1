"""The objects of an image: read from DOTA's text and DIOR-R's XML, written as DOTA's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s5.data.image_io import write_bytes
from s5.data.oriented.classes import class_ids
from s5.data.oriented.geometry import to_boxes
from s5.data.oriented.raw import FLAG_DIFFICULT, FLAG_TRUNCATED, AnnotationError, RawObject, read_raw

ANNOTATION_EXTENSIONS = (".txt", ".xml")
MIN_SIDE = 0.1  # pixels; what is thinner is a line or a point


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        polygons: float32 (n, 4, 2), corners x, y in pixels.
        labels: int64 (n,).
        difficult: bool (n,), objects that scores leave out.
    """

    polygons: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> np.ndarray:
        """Rotated boxes float32 (n, 5), le90."""
        return to_boxes(self.polygons)

    def select(self, which: np.ndarray) -> Objects:
        """Some of the objects, by a mask or indices."""
        return Objects(self.polygons[which], self.labels[which], self.difficult[which])


def make_objects(
    polygons: Sequence | np.ndarray = (), labels: Sequence[int] = (), difficult: Sequence[bool] = ()
) -> Objects:
    """Objects of eight coordinates each; none by default."""
    return Objects(
        np.array(polygons, np.float32).reshape(-1, 4, 2),
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


class AnnotationReader:
    """Reads annotation files for a list of classes.

    Args:
        classes: their names in the order of the labels; capitals do not count.
        leave_out: classes that files may have, but of which no object is taken.

    Raises:
        DataError: names of classes that are empty, equal or have white space.
    """

    def __init__(self, classes: Sequence[str], leave_out: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        self._ids = class_ids(classes)
        self._left_out = {name.casefold() for name in leave_out}

    def read(self, path: Path, left_out: list[str] | None = None) -> Objects:
        """The objects of one file, ``.txt`` (DOTA) or ``.xml`` (DIOR-R).

        Objects without area, which DOTA has a few of, are left out: nothing can be learned from them, and no
        detection can meet them.

        Args:
            path: the file.
            left_out: takes a message for each of them.

        Raises:
            AnnotationError: the file is missing or malformed, or has a class that is unknown or a coordinate
                that is no finite number.
        """
        raw = [item for item in read_raw(path) if item.name.casefold() not in self._left_out]
        labels = [self._label(path, item) for item in raw]
        objects = make_objects([item.corners for item in raw], labels, [item.difficult for item in raw])
        finite = np.isfinite(objects.polygons).all((1, 2))
        if not finite.all():
            where = raw[int(finite.argmin())].where
            raise AnnotationError(f"{path}, {where}: a coordinate is not a finite number; correct the object")
        sides = objects.boxes[:, 2:4]
        thin = sides.min(1) < MIN_SIDE
        if not thin.any():
            return objects
        if left_out is not None:
            left_out += [
                f"{path}, {raw[i].where}: a box of {sides[i, 0]:g} x {sides[i, 1]:g} pixels has no area"
                for i in np.flatnonzero(thin)
            ]
        return objects.select(~thin)

    def _label(self, path: Path, item: RawObject) -> int:
        label = self._ids.get(item.name.casefold())
        if label is None:
            raise AnnotationError(
                f"{path}, {item.where}: unknown class {item.name!r}. The task has "
                f"{', '.join(self.classes)}; correct the name, add it to them, or list it in leave_out"
            )
        return label


def write_objects(
    path: Path, objects: Objects, classes: Sequence[str], truncated: np.ndarray | None = None
) -> None:
    """Write DOTA's text, whole or not at all.

    Args:
        path: the file.
        objects: coordinates keep all their digits.
        classes: names by label.
        truncated: bool (n,), which objects a window truncates.
    """
    flags = np.zeros(len(objects), int) if truncated is None else np.where(truncated, FLAG_TRUNCATED, 0)
    flags[objects.difficult] = FLAG_DIFFICULT
    rows = zip(objects.polygons.reshape(-1, 8), objects.labels, flags, strict=True)
    lines = [f"{' '.join(map(str, corners))} {classes[label]} {flag}\n" for corners, label, flag in rows]
    write_bytes(path, "".join(lines).encode())
