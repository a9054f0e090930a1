"""An object as an annotation file has it, and the readers of the two kinds of files.

DOTA's text: a line per object, ``x1 y1 x2 y2 x3 y3 x4 y4 class [flag]``, after optional lines
``imagesource:...`` and ``gsd:...``. Flag 0 is an ordinary object, 1 (or any other number) a difficult one; 2
is what cutting tools write for an object that a window truncates, which is an ordinary one.

DIOR-R's XML: ``<object>`` with ``<name>``, ``<difficult>`` and a ``<robndbox>``, which has its corners
(``<x_left_top>``, ``<y_left_top>`` ..., as in DIOR-R) or centre, sides and the angle in radians, clockwise
(``<cx>``, ``<cy>``, ``<w>``, ``<h>``, ``<angle>``, as the tool roLabelImg writes). The ``<bndbox>`` that this
tool writes for an upright box has the angle 0: it is recognised by ``<type>bndbox</type>``, or by a rotated
object in the same file. Other upright boxes are refused, as they may be DIOR's horizontal annotations.

YOLO's text (class numbers, shares of the image) is recognised and refused: names and sizes are not in it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from s5.data.errors import DataError
from s5.data.oriented.geometry import to_polygons

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
    """An annotation file that cannot be read or holds an object that cannot be."""


class RawObject(NamedTuple):
    """An object of a file.

    Attributes:
        where: its place, for messages.
        name: of its class.
        corners: eight coordinates in pixels.
        difficult: whether scores leave it out.
    """

    where: str
    name: str
    corners: Sequence[float]
    difficult: bool


def read_raw(path: Path) -> Iterator[RawObject]:
    """The objects of a ``.txt`` or ``.xml`` in their order.

    Raises:
        AnnotationError: the file is missing or malformed.
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
            "image's width and y by its height, and write the class's name (see data.yaml or classes.txt) "
            "behind the corners"
        )
    if not 9 <= len(fields) <= 10:
        hint = ". Names of classes have no white space" if len(fields) > 10 else ""
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
    """What a line of YOLO's text is, a class number and then shares of the image; empty for other lines."""
    try:
        shares = [float(field) for field in fields[1:]]
    except ValueError:
        return ""
    # A name in place of the last share would be a whole number at most.
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
    """Corners of an object; ``rotated`` says whether any object of the file is."""
    box, upright = node.find("robndbox"), node.find("bndbox")
    if box is None and upright is not None and (rotated or (node.findtext("type") or "").strip() == "bndbox"):
        left, top, right, bottom = (_number(upright, tag, path, where) for tag in UPRIGHT_TAGS)
        return _box_corners(
            [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0], path, where
        )
    if box is None:
        found = ", ".join(f"<{child.tag}>" for child in node)
        raise AnnotationError(
            f"{path}, {where}: no <robndbox> (it has {found}). Give the oriented annotations, which DIOR-R "
            "ships in 'Annotations/Oriented Bounding Boxes'"
        )
    if box.find("cx") is None:
        return [_number(box, tag, path, where) for tag in CORNER_TAGS]
    return _box_corners([_number(box, tag, path, where) for tag in BOX_TAGS], path, where)


def _box_corners(values: Sequence[float], path: Path, where: str) -> list[float]:
    """Corners of centre, sides and angle."""
    if min(values[2:4]) < 0:
        raise AnnotationError(
            f"{path}, {where}: a box of {values[2]:g} x {values[3]:g} pixels; sides are not negative. "
            "Correct the object or take it out"
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
