"""Label tables and class lists, by the name of a known dataset or from a configuration.

Masks have a label table, from raw values to class names and train ids (:func:`get_table`); objects have a
list of class names (:func:`get_classes`). Those of known datasets are in :mod:`s5.data.datasets`; a user's
own are a mapping or a list in the configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from s5.data.datasets import CLASS_LISTS, TABLES
from s5.data.label_table import IGNORE, RGB, LabelTable, distinct_colors
from s5.data.oriented.annotations import class_ids
from s5.errors import DataError, LabelError


def get_table(spec: str | Mapping[str, Any] | LabelTable, default_name: str | None = None) -> LabelTable:
    """Find a label table by name, or build one from a mapping.

    A mapping with one class is a binary task: the table has background and that class, with the raw values 0
    and 1, or 0 and the value in `values`.

    Args:
        spec: A name in :data:`~s5.data.datasets.TABLES`, or a mapping with `classes` and, optionally,
            `name`, `values` (raw value of each class; default 0, 1, 2 ...), `palette` (RGB of each
            class), `ignore` (raw values to ignore, a list or one; default `[255]` unless 255 is a class),
            `background` (train id), `ignore_colors` (RGB colours of a colour-coded mask that mean
            "ignore") and `color_code` (whether colour-coded masks are read with the palette; default: if it
            is given).
        default_name: Name of the table if the mapping has none; without it the mapping needs a name.

    Raises:
        LabelError: A name or key is unknown, a value has the wrong form, or the table is inconsistent.
    """
    if isinstance(spec, LabelTable):
        return spec
    if isinstance(spec, Mapping):
        return table_from_mapping({"name": default_name, **spec} if default_name else spec)
    if not isinstance(spec, str) or spec not in TABLES:
        raise LabelError(
            f"unknown label table {spec!r}; known: {', '.join(sorted(TABLES))}. "
            "A table of your own is a mapping with name and classes"
        )
    return TABLES[spec]


def get_classes(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Class names of objects: those of a known list, by its name, or the given ones.

    Raises:
        DataError: The list is unknown, or see :func:`~s5.data.oriented.annotations.class_ids`.
    """
    if isinstance(spec, str):
        if spec not in CLASS_LISTS:
            raise DataError(
                f"classes {spec!r}: must be {', '.join(CLASS_LISTS)}, or a list of names; a single class is "
                f"written [{spec!r}]"
            )
        return CLASS_LISTS[spec]
    class_ids(spec)
    return tuple(spec)


_KEYS = ("name", "classes", "values", "palette", "ignore", "background", "ignore_colors", "color_code")


def table_from_mapping(spec: Mapping[str, Any]) -> LabelTable:
    """Build a label table from a mapping; see :func:`s5.data.labels.get_table` for its keys.

    Raises:
        LabelError: A key is unknown or missing, a value has the wrong form, or the table is inconsistent.
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


def _require_keys(spec: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in set(spec) - set(_KEYS))
    missing = sorted({"name", "classes"} - set(spec))
    if unknown or missing:
        wrong = f"unknown key {', '.join(unknown)}" if unknown else f"missing key {', '.join(missing)}"
        raise LabelError(f"label table {spec.get('name', '?')!r}: {wrong}; keys are {', '.join(_KEYS)}")


def _with_background(given: dict[str, Any]) -> dict[str, Any]:
    """Add the background class to a mapping with one class; return others unchanged."""
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
        _refuse(spec, key, "a string")
    return str(name)


def _classes(spec: Mapping[str, Any], key: str) -> tuple[str, ...]:
    classes = spec[key]
    if isinstance(classes, str):
        _refuse(spec, key, f"a list, [{classes}] for one class")
    if not _is_list(classes):
        _refuse(spec, key, "a list of names such as [road, field]; their mask values go to values")
    if not all(isinstance(c, (str, float)) or _is_number(c) for c in classes):
        _refuse(spec, key, "names; put words that YAML reads as values, such as yes, no and null, in quotes")
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


HELP = f"label table: {', '.join(sorted(TABLES))}, a YAML file or a mapping"
"""Accepted forms of the argument."""


def parse_table(text: str, default_name: str | None = None) -> LabelTable:
    """Parse an argument: the name of a known table, a JSON or YAML mapping, or a file that contains one.

    Args:
        text: The argument.
        default_name: Name of the table if the mapping has none.

    Raises:
        LabelError: There is no such table or file, the text is not YAML, or the table is inconsistent.
    """
    spec: Any = text
    try:
        if text.lstrip().startswith("{"):
            spec = yaml.safe_load(text)
        elif text.endswith((".yaml", ".yml", ".json")):
            spec = yaml.safe_load(Path(text).read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise LabelError(f"label table {text!r} cannot be read: {error}") from error
    return get_table(spec, default_name)
