"""Label tables by name: raw mask value -> class name -> train id, with palette and ignored values.

One row per dataset in :data:`TABLES`; a user's own dataset is a mapping in the YAML configuration, read by
the same :func:`get_table`. To add a dataset, add a ``_row`` with ``(class, RGB)`` pairs in the order of the
train ids; give ``values`` when the masks do not simply count from 0.

ISPRS Vaihingen and Potsdam have four tables each, of the same classes and colours: ``potsdam`` (5 classes,
clutter is ignored, as scores are published) and ``potsdam_6`` read the masks that ``s5.data.prepare`` writes
(0 to 4, clutter 5, eroded boundary 255); ``potsdam_mmseg`` and ``potsdam_mmseg_6`` read masks in the
mmsegmentation convention, which are one higher (boundary 0, classes 1 to 5, clutter 6).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from s5.data.errors import LabelError
from s5.data.label_table import IGNORE, RGB, LabelTable

__all__ = ["IGNORE", "RGB", "TABLES", "LabelTable", "distinct_colors", "get_table"]


def _row(
    name: str,
    *classes: tuple[str, RGB],
    values: tuple[int, ...] | None = None,
    background: int | None = None,
    ignore_values: tuple[int, ...] = (IGNORE,),
    ignore_colors: tuple[RGB, ...] = (),
) -> LabelTable:
    """A table from ``(class, RGB)`` pairs; raw values count from 0 unless ``values`` is given."""
    names, palette = zip(*classes, strict=True)
    return LabelTable(
        name=name,
        classes=names,
        values=tuple(range(len(names))) if values is None else values,
        palette=palette,
        ignore_values=ignore_values,
        background=background,
        ignore_colors=ignore_colors,
    )


# Colours of the ISPRS 2D semantic labelling contest; black marks the eroded boundary between objects.
_ISPRS_CLASSES: tuple[tuple[str, RGB], ...] = (
    ("impervious_surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low_vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
)
_CLUTTER: tuple[str, RGB] = ("clutter", (255, 0, 0))
_BOUNDARY: RGB = (0, 0, 0)

# Colours of the authors' page (github.com/Junjue-Wang/LoveDA).
_LOVEDA_CLASSES: tuple[tuple[str, RGB], ...] = (
    ("background", (255, 255, 255)),
    ("building", (255, 0, 0)),
    ("road", (255, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (159, 129, 183)),
    ("forest", (0, 255, 0)),
    ("agricultural", (255, 195, 128)),
)


def _isprs(name: str) -> tuple[LabelTable, ...]:
    """The four tables of an ISPRS dataset; see the module."""
    five, six = _ISPRS_CLASSES, (*_ISPRS_CLASSES, _CLUTTER)
    not_counted = (_CLUTTER[1], _BOUNDARY)
    from_1_to_5, from_1_to_6 = tuple(range(1, 6)), tuple(range(1, 7))
    return (
        _row(name, *five, ignore_values=(5, IGNORE), ignore_colors=not_counted),
        _row(f"{name}_6", *six, ignore_colors=(_BOUNDARY,)),
        _row(f"{name}_mmseg", *five, values=from_1_to_5, ignore_values=(0, 6), ignore_colors=not_counted),
        _row(f"{name}_mmseg_6", *six, values=from_1_to_6, ignore_values=(0,), ignore_colors=(_BOUNDARY,)),
    )


TABLES: dict[str, LabelTable] = {
    table.name: table
    for table in (
        # Ids and colours of the authors' development kit (github.com/CAPTAIN-WHU/iSAID_Devkit, labels.py).
        _row(
            "isaid",
            ("background", (0, 0, 0)),
            ("ship", (0, 0, 63)),
            ("storage_tank", (0, 63, 63)),
            ("baseball_diamond", (0, 63, 0)),
            ("tennis_court", (0, 63, 127)),
            ("basketball_court", (0, 63, 191)),
            ("ground_track_field", (0, 63, 255)),
            ("bridge", (0, 127, 63)),
            ("large_vehicle", (0, 127, 127)),
            ("small_vehicle", (0, 0, 127)),
            ("helicopter", (0, 0, 191)),
            ("swimming_pool", (0, 0, 255)),
            ("roundabout", (0, 191, 127)),
            ("soccer_ball_field", (0, 127, 191)),
            ("plane", (0, 127, 255)),
            ("harbor", (0, 100, 155)),
            background=0,
        ),
        *_isprs("vaihingen"),
        *_isprs("potsdam"),
        # As shipped: 0 is no-data. The other one is for masks that were shifted to train ids.
        _row("loveda", *_LOVEDA_CLASSES, values=tuple(range(1, 8)), background=0, ignore_values=(0,)),
        _row("loveda_train_ids", *_LOVEDA_CLASSES, background=0),
        # Ids and colours of open-earth-map.org; pixels of no class are 0 and count as one.
        _row(
            "openearthmap",
            ("background", (0, 0, 0)),
            ("bareland", (128, 0, 0)),
            ("rangeland", (0, 255, 36)),
            ("developed_space", (148, 148, 148)),
            ("road", (255, 255, 255)),
            ("tree", (34, 97, 38)),
            ("water", (0, 69, 255)),
            ("agriculture_land", (75, 181, 73)),
            ("building", (222, 31, 7)),
            background=0,
        ),
        # The embedded synthetic scenes (scenes).
        _row(
            "scenes",
            ("field", (190, 200, 110)),
            ("forest", (40, 110, 50)),
            ("water", (50, 110, 200)),
            ("road", (150, 150, 150)),
            ("building", (220, 90, 60)),
            ("vehicle", (250, 220, 50)),
            ("ship", (240, 240, 250)),
            ("plane", (200, 70, 200)),
        ),
    )
}
"""The label tables that are known by name."""


def get_table(spec: str | Mapping[str, Any] | LabelTable, default_name: str | None = None) -> LabelTable:
    """Find a label table by name, or build one from a mapping.

    A mapping with one class is a binary task: the table has the classes background and that one, with the raw
    values 0 and 1, or 0 and the one in ``values``.

    Args:
        spec: a name in :data:`TABLES`, or a mapping with ``classes`` and, optionally, ``name``, ``values``
            (raw value of each class; default 0, 1, 2 ...), ``palette`` (RGB of each class), ``ignore`` (raw
            values to ignore, a list or one; default ``[255]`` unless 255 is a class), ``background`` (train
            id), ``ignore_colors`` (RGB colours of a colour-coded mask that mean "ignore") and ``color_code``
            (whether masks in colours are read by the palette; default: if it is given).
        default_name: name of a table whose mapping has none; without it the mapping needs a name.

    Raises:
        LabelError: unknown name or key, a value of the wrong form, or a table that contradicts itself.
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


HELP = f"label table: {', '.join(sorted(TABLES))}, a YAML file or a mapping"
"""What the argument may be."""


def parse_table(text: str, default_name: str | None = None) -> LabelTable:
    """A known table's name, a JSON or YAML mapping, or a file that holds one.

    Args:
        text: the argument.
        default_name: name of a table whose mapping has none.

    Raises:
        LabelError: no such table or file, not YAML, or a table that contradicts itself.
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
