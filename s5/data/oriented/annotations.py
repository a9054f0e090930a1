"""Annotations of oriented objects: readers of DOTA text and DIOR-R XML, and a writer of DOTA text.

DOTA text has a line per object, `x1 y1 x2 y2 x3 y3 x4 y4 class [flag]`, after optional lines
`imagesource:...` and `gsd:...`. Flag 0 is an ordinary object, 1 (or any other number) a difficult one; 2
is written by cutting tools for an object truncated by a window, which is treated as an ordinary one.

DIOR-R XML has an `<object>` with `<name>`, `<difficult>` and a `<robndbox>`, which has either corners
(`<x_left_top>`, `<y_left_top>` ..., as in DIOR-R) or centre, sides and the angle in radians, clockwise
(`<cx>`, `<cy>`, `<w>`, `<h>`, `<angle>`, as written by roLabelImg). The `<bndbox>` that roLabelImg
writes for an upright box is a box with angle 0: it is recognised by `<type>bndbox</type>`, or by a rotated
object in the same file. Other upright boxes are refused, because they may be DIOR's horizontal annotations.

YOLO text (class numbers, normalised coordinates) is recognised and refused: it has no class names or image
size.
"""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from s5.data.files import write_bytes
from s5.data.oriented.geometry import to_boxes, to_polygons
from s5.errors import DataError

logger = logging.getLogger(__name__)

FLAG_DIFFICULT, FLAG_TRUNCATED = 1, 2
CORNER_TAGS = tuple(
    f"{axis}_{corner}"
    for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
    for axis in ("x", "y")
)
BOX_TAGS = ("cx", "cy", "w", "h", "angle")
UPRIGHT_TAGS = ("xmin", "ymin", "xmax", "ymax")
_HEADERS = ("imagesource:", "gsd:")
_LINE = "x1 y1 x2 y2 x3 y3 x4 y4 class [difficult]"


class AnnotationError(DataError):
    """An annotation file that cannot be read or contains an invalid object."""


class RawObject(NamedTuple):
    """An object in an annotation file.

    Attributes:
        where: Its line or number, for messages.
        name: Name of its class.
        corners: Eight coordinates in pixels.
        difficult: Whether it is excluded from scores.
    """

    where: str
    name: str
    corners: Sequence[float]
    difficult: bool


def read_raw(path: Path) -> Iterator[RawObject]:
    """Read the objects of a `.txt` or `.xml` file, in order.

    Raises:
        AnnotationError: The file is missing or malformed.
    """
    return _read_xml(path) if path.suffix.lower() == ".xml" else _read_text(path)


def _read_text(path: Path) -> Iterator[RawObject]:
    try:
        text = _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is not text ({error}); lines are {_LINE}") from error
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if fields and not fields[0].lower().startswith(_HEADERS):
            yield _parse(fields, f"line {number}", path)


def _parse(fields: list[str], where: str, path: Path) -> RawObject:
    if yolo := _yolo_kind(fields):
        raise AnnotationError(
            f"{path}, {where}: {yolo}: {' '.join(fields)!r}. Lines are {_LINE}, in pixels: multiply x by the "
            "image's width and y by its height, and write the class name (see data.yaml or classes.txt) "
            "after the corners"
        )
    if not 9 <= len(fields) <= 10:
        hint = ". Class names cannot contain white space" if len(fields) > 10 else ""
        raise AnnotationError(
            f"{path}, {where}: {len(fields)} fields instead of 9 or 10, {_LINE}: {' '.join(fields)!r}{hint}"
        )
    try:
        corners = [float(field) for field in fields[:8]]
        flag = int(fields[9]) if len(fields) == 10 else 0
    except ValueError as error:
        raise AnnotationError(f"{path}, {where}: {error}; expected {_LINE}, all but class numbers") from error
    return RawObject(where, fields[8], corners, flag not in (0, FLAG_TRUNCATED))


def _yolo_kind(fields: Sequence[str]) -> str:
    """Describe a line of YOLO text, a class number and normalised coordinates; empty for other lines."""
    try:
        shares = [float(field) for field in fields[1:]]
    except ValueError:
        return ""
    # In DOTA text, the last field is a class name or an integer flag.
    if not (
        fields[0].isdecimal() and shares and "." in fields[-1] and all(-1 <= share <= 2 for share in shares)
    ):
        return ""
    if len(shares) in (8, 9):
        return "a normalised oriented box of YOLO-OBB"
    return "an upright box of YOLO, not an oriented one" if len(shares) in (4, 5) else ""


def _read_xml(path: Path) -> Iterator[RawObject]:
    try:
        root = ElementTree.fromstring(_read_bytes(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of unknown encodings
        raise AnnotationError(f"{path}: malformed XML ({error}); restore it, or save it as UTF-8") from error
    if root.tag != "annotation":
        raise AnnotationError(f"{path}: begins with <{root.tag}>, expected <annotation> as in DIOR-R")
    nodes = list(root.iter("object"))
    rotated = any(node.find("robndbox") is not None for node in nodes)
    for number, node in enumerate(nodes, 1):
        name = (node.findtext("name") or "").strip()
        where = f"object {number} ({name or 'without a name'})"
        if not name:
            raise AnnotationError(f"{path}, {where}: <name> is missing or empty")
        difficult = (node.findtext("difficult") or "0").strip() != "0"
        yield RawObject(where, name, _corners(node, path, where, rotated), difficult)


def _corners(node: ElementTree.Element, path: Path, where: str, rotated: bool) -> list[float]:
    """Corners of an object; `rotated` says whether the file has any rotated object."""
    box, upright = node.find("robndbox"), node.find("bndbox")
    if box is None and upright is not None and (rotated or (node.findtext("type") or "").strip() == "bndbox"):
        left, top, right, bottom = (_number(upright, tag, path, where) for tag in UPRIGHT_TAGS)
        return _box_corners(
            [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0], path, where
        )
    if box is None:
        found = ", ".join(f"<{child.tag}>" for child in node)
        raise AnnotationError(
            f"{path}, {where}: no <robndbox> (it has {found}). Use the oriented annotations, which DIOR-R "
            "ships in 'Annotations/Oriented Bounding Boxes'"
        )
    if box.find("cx") is None:
        return [_number(box, tag, path, where) for tag in CORNER_TAGS]
    return _box_corners([_number(box, tag, path, where) for tag in BOX_TAGS], path, where)


def _box_corners(values: Sequence[float], path: Path, where: str) -> list[float]:
    """Corners of a box given by centre, sides and angle."""
    if min(values[2:4]) < 0:
        raise AnnotationError(
            f"{path}, {where}: a box of {values[2]:g} x {values[3]:g} pixels; sides cannot be negative. "
            "Correct or remove the object"
        )
    return to_polygons(np.array([values])).ravel().tolist()


def _number(box: ElementTree.Element, tag: str, path: Path, where: str) -> float:
    text = box.findtext(tag)
    if text is None:
        raise AnnotationError(f"{path}, {where}: <{box.tag}> has no <{tag}>")
    try:
        return float(text)
    except ValueError:
        raise AnnotationError(f"{path}, {where}: <{tag}> is {text!r}, not a number") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error


ANNOTATION_EXTENSIONS = (".txt", ".xml")
_CLASS_LISTS = ("classes.txt", "predefined_classes.txt")
MIN_SIDE = 0.1  # pixels; thinner boxes are lines or points


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        polygons: float32 (n, 4, 2), corners x, y in pixels.
        labels: int64 (n,).
        difficult: bool (n,), objects excluded from scores.
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

    def select(self, which: np.ndarray) -> "Objects":
        """Select objects by a mask or indices."""
        return Objects(self.polygons[which], self.labels[which], self.difficult[which])


def make_objects(
    polygons: Sequence | np.ndarray = (), labels: Sequence[int] = (), difficult: Sequence[bool] = ()
) -> Objects:
    """Create objects from eight coordinates each; none by default."""
    return Objects(
        np.array(polygons, np.float32).reshape(-1, 4, 2),
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """Label of each class by its case-folded name.

    Raises:
        DataError: There are no classes, a name has white space (not possible in DOTA text), or two are equal.
    """
    ids = {name.casefold(): label for label, name in enumerate(classes)}
    if not ids:
        raise DataError("a detection task needs at least one class; list their names under `classes`")
    if bad := [name for name in classes if not name or any(c.isspace() for c in name)]:
        raise DataError(f"class {bad[0]!r}: class names cannot contain white space; write '-' or '_' instead")
    if len(ids) < len(classes):
        twice = [name for label, name in enumerate(classes) if ids[name.casefold()] != label]
        raise DataError(f"class {twice[0]!r} is listed twice (case is ignored)")
    return ids


class AnnotationReader:
    """Reads annotation files for a list of classes.

    Args:
        classes: Class names in the order of the labels; case is ignored.
        leave_out: Classes to skip.

    Raises:
        DataError: Class names are empty, equal or contain white space.
    """

    def __init__(self, classes: Sequence[str], leave_out: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        self._ids = class_ids(classes)
        self._left_out = {name.casefold() for name in leave_out}

    def read(self, path: Path, left_out: list[str] | None = None) -> Objects:
        """Read the objects of a file, `.txt` (DOTA) or `.xml` (DIOR-R).

        Objects without area (DOTA has a few) are skipped: they cannot be learned, and no detection can match
        them.

        Args:
            path: The file.
            left_out: List to which a message is appended for each skipped object.

        Raises:
            AnnotationError: The file is missing or malformed, or has an unknown class or a non-finite
                coordinate.
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


def without_class_list(texts: Mapping[str, Path], images: Container[str]) -> dict[str, Path]:
    """Annotation files by name without `classes.txt`, in which some tools store the class names.

    Args:
        texts: The files by the name of their image.
        images: Names of the images; if one is called `classes`, its file is kept.
    """
    lists = {name: path for name, path in texts.items() if path.name in _CLASS_LISTS and name not in images}
    for path in lists.values():
        logger.info("%s: a list of classes, not an annotation; skipped", path)
    return {name: path for name, path in texts.items() if name not in lists}


def write_objects(
    path: Path, objects: Objects, classes: Sequence[str], truncated: np.ndarray | None = None
) -> None:
    """Write DOTA text atomically.

    Args:
        path: The file.
        objects: The objects; coordinates are written with full precision.
        classes: Class names by label.
        truncated: bool (n,), objects truncated by a window.
    """
    flags = np.zeros(len(objects), int) if truncated is None else np.where(truncated, FLAG_TRUNCATED, 0)
    flags[objects.difficult] = FLAG_DIFFICULT
    rows = zip(objects.polygons.reshape(-1, 8), objects.labels, flags, strict=True)
    lines = [f"{' '.join(map(str, corners))} {classes[label]} {flag}\n" for corners, label, flag in rows]
    write_bytes(path, "".join(lines).encode())
