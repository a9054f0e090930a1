"""A label table of a user's own: a mapping of plain data, held against what each key must be."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from s5.data.errors import LabelError
from s5.data.label_table import IGNORE, RGB, LabelTable

_KEYS = ("name", "classes", "values", "palette", "ignore", "background", "ignore_colors", "color_code")


def table_from_mapping(spec: Mapping[str, Any]) -> LabelTable:
    """Build a label table from a mapping; see :func:`s5.data.labels.get_table` for its keys.

    Raises:
        LabelError: a key is unknown, missing or of the wrong form, or the table contradicts itself.
    """
    _require_keys(spec)
    stated = {key: _FORMS[key](spec, key) for key in _KEYS if key in spec}
    color_code = stated.get("color_code", "palette" in stated)
    if color_code and "palette" not in stated:
        _refuse(spec, "color_code", "false, or a palette with the colour of each class in the masks")
    given = _with_background(stated)
    classes = given["classes"]
    values = given.get("values", tuple(range(len(classes))))
    return LabelTable(
        name=given["name"],
        classes=classes,
        values=values,
        palette=given.get("palette", tuple(distinct_colors(len(classes)))),
        ignore_values=given.get("ignore", () if IGNORE in values else (IGNORE,)),
        background=given.get("background"),
        ignore_colors=given.get("ignore_colors", ()),
        color_code=color_code,
    )


def distinct_colors(n: int) -> list[RGB]:
    """``n`` colours that are easy to tell apart: hue by the golden ratio, brightness in turns."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.65, (0.95, 0.65)[i % 2]) for i in range(n)]
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colors]


def _require_keys(spec: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in set(spec) - set(_KEYS))
    missing = sorted({"name", "classes"} - set(spec))
    if unknown or missing:
        wrong = f"unknown key {', '.join(unknown)}" if unknown else f"missing key {', '.join(missing)}"
        raise LabelError(f"label table {spec.get('name', '?')!r}: {wrong}; keys are {', '.join(_KEYS)}")


def _with_background(given: dict[str, Any]) -> dict[str, Any]:
    """A mapping with one class as that of a binary task; any other as it is."""
    if len(given["classes"]) != 1:
        return given
    return {
        "background": 0,
        **given,
        "classes": ("background", *given["classes"]),
        "values": (0, *given.get("values", (1,))),
        "palette": ((0, 0, 0), *given.get("palette", distinct_colors(1))),
    }


def _refuse(spec: Mapping[str, Any], key: str, expected: str) -> NoReturn:
    raise LabelError(f"label table {spec.get('name')!r}: {key} is {spec[key]!r}; expected {expected}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(spec: Mapping[str, Any], key: str) -> str:
    name = spec[key]
    if not (isinstance(name, str) or _is_number(name)):
        _refuse(spec, key, "a text")
    return str(name)


def _classes(spec: Mapping[str, Any], key: str) -> tuple[str, ...]:
    classes = spec[key]
    if isinstance(classes, str):
        _refuse(spec, key, f"a list, [{classes}] for one class")
    if not _is_list(classes):
        _refuse(spec, key, "a list of names such as [road, field]; their mask values go to values")
    if not all(isinstance(c, (str, float)) or _is_number(c) for c in classes):
        _refuse(spec, key, "names; in YAML, words such as yes, no and null are names in quotes only")
    return tuple(str(c) for c in classes)


def _numbers(spec: Mapping[str, Any], key: str) -> tuple[int, ...]:
    values = spec[key]
    if not _is_list(values) or not all(map(_is_number, values)):
        _refuse(spec, key, "a list of whole numbers in 0..255, the mask value of each class")
    return tuple(values)


def _ignore(spec: Mapping[str, Any], key: str) -> tuple[int, ...]:
    values = [spec[key]] if _is_number(spec[key]) else spec[key]
    if not _is_list(values) or not all(map(_is_number, values)):
        _refuse(spec, key, "a list of mask values in 0..255 such as [255]; [] if none is ignored")
    return tuple(values)


def _colors(spec: Mapping[str, Any], key: str) -> tuple[RGB, ...]:
    colors = spec[key]
    if not _is_list(colors) or not all(
        _is_list(c) and len(c) == 3 and all(map(_is_number, c)) for c in colors
    ):
        _refuse(spec, key, "a list of colours, each three numbers in 0..255 such as [255, 0, 0]")
    return tuple((r, g, b) for r, g, b in colors)


def _background(spec: Mapping[str, Any], key: str) -> int | None:
    if not (spec[key] is None or _is_number(spec[key])):
        _refuse(spec, key, "the number of a class, counted from 0")
    return spec[key]


def _color_code(spec: Mapping[str, Any], key: str) -> bool:
    if not isinstance(spec[key], bool):
        _refuse(spec, key, "true or false")
    return spec[key]


_FORMS: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "name": _name,
    "classes": _classes,
    "values": _numbers,
    "palette": _colors,
    "ignore": _ignore,
    "background": _background,
    "ignore_colors": _colors,
    "color_code": _color_code,
}
