"""Label tables by name: raw mask value -> class name -> train id, with palette and ignored values.

One row per data set in :data:`TABLES`; a user's own data set is a mapping in the YAML configuration, read by
the same :func:`get_table`. To add a data set, add a ``_row`` with ``(class, RGB)`` pairs in the order of the
train ids; give ``values`` when the masks do not simply count from 0.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

from s5.data.errors import LabelError
from s5.data.label_table import IGNORE, RGB, LabelTable

__all__ = ["IGNORE", "RGB", "TABLES", "LabelTable", "get_table"]


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
        # The embedded synthetic scenes (s5.data.scenes).
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

_KEYS = ("name", "classes", "values", "palette", "ignore", "background")


def get_table(spec: str | Mapping[str, Any] | LabelTable) -> LabelTable:
    """Find a label table by name, or build one from a mapping.

    Args:
        spec: a name in :data:`TABLES`, or a mapping with ``name`` and ``classes`` and, optionally, ``values``
            (raw value of each class; default 0, 1, 2 ...), ``palette`` (RGB of each class), ``ignore`` (raw
            values to ignore; default ``[255]``) and ``background`` (train id).

    Raises:
        LabelError: unknown name or key, or a table that contradicts itself.
    """
    if isinstance(spec, LabelTable):
        return spec
    if isinstance(spec, str):
        if spec not in TABLES:
            raise LabelError(
                f"unknown label table {spec!r}; known: {', '.join(sorted(TABLES))}. "
                "A table of your own is a mapping with name and classes"
            )
        return TABLES[spec]
    unknown = sorted(set(spec) - set(_KEYS))
    missing = sorted({"name", "classes"} - set(spec))
    if unknown or missing:
        wrong = f"unknown key {', '.join(unknown)}" if unknown else f"missing key {', '.join(missing)}"
        raise LabelError(f"label table {spec.get('name', '?')!r}: {wrong}; keys are {', '.join(_KEYS)}")
    classes = tuple(str(c) for c in spec["classes"])
    return LabelTable(
        name=str(spec["name"]),
        classes=classes,
        values=tuple(int(v) for v in spec.get("values", range(len(classes)))),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in spec.get("palette", _palette(len(classes)))),
        ignore_values=tuple(int(v) for v in spec.get("ignore", (IGNORE,))),
        background=None if spec.get("background") is None else int(spec["background"]),
    )


def _palette(n: int) -> list[RGB]:
    """``n`` colours that are easy to tell apart: hue by the golden ratio, brightness in turns."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.65, (0.95, 0.65)[i % 2]) for i in range(n)]
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colors]
