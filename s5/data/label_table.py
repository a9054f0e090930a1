"""The meaning of a data set's mask values, and the conversions between values, train ids and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from s5.data.errors import LabelError

IGNORE = 255
"""Train id of pixels that count nowhere: neither in the loss nor in the metrics."""

_UNKNOWN = 254  # marks a raw value or colour outside the table; never a train id
_BLOCK = 1 << 20  # pixels converted at a time by from_colors, so that temporaries stay in the cache

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class LabelTable:
    """What the values of one dataset's masks mean.

    Attributes:
        name: name of the table, used in messages.
        classes: class names in the order of the train ids.
        values: raw mask value of each train id.
        palette: RGB colour (0..255) of each train id; also the colour code read by :meth:`from_colors`.
        ignore_values: raw mask values that become :data:`IGNORE`.
        background: train id of the background class, or None.
        ignore_colors: RGB colours of a colour-coded mask that mean "ignore".
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    palette: tuple[RGB, ...]
    ignore_values: tuple[int, ...] = (255,)
    background: int | None = None
    ignore_colors: tuple[RGB, ...] = ()

    def __post_init__(self) -> None:
        """Refuse tables in which a value would have two meanings or none."""
        problem = _problem(self)
        if problem:
            raise LabelError(f"label table {self.name!r}: {problem}")

    @property
    def no_data(self) -> int:
        """Raw value of a predicted mask where the image has no data.

        255 if the table ignores it, else the first ignored value; without any, the highest that is no class.
        """
        if self.ignore_values:
            return IGNORE if IGNORE in self.ignore_values else self.ignore_values[0]
        return max(set(range(256)) - set(self.values))

    @property
    def num_classes(self) -> int:
        """Number of classes, background included, ignored pixels not."""
        return len(self.classes)

    def as_mapping(self) -> dict[str, Any]:
        """The table as plain data (for YAML, JSON, checkpoints); ``get_table`` reads it back equal."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "values": list(self.values),
            "palette": [list(color) for color in self.palette],
            "ignore": list(self.ignore_values),
            "background": self.background,
            "ignore_colors": [list(color) for color in self.ignore_colors],
        }

    @cached_property
    def _lut(self) -> np.ndarray:
        """uint8 (256,): train id of each raw value, ``_UNKNOWN`` where there is none."""
        lut = np.full(256, _UNKNOWN, np.uint8)
        lut[list(self.values)] = np.arange(self.num_classes, dtype=np.uint8)
        lut[list(self.ignore_values)] = IGNORE
        return lut

    def encode(self, mask: np.ndarray, path: str | Path) -> np.ndarray:
        """Turn raw mask values into train ids.

        Args:
            mask: uint8 (H, W), raw values as stored in the file.
            path: where the mask comes from, for the message.

        Returns:
            uint8 (H, W): train ids 0..num_classes-1, and :data:`IGNORE`.

        Raises:
            LabelError: a value is outside the table; names file, values, pixel counts and valid values.
        """
        ids = cv2.LUT(mask, self._lut)
        if (ids == _UNKNOWN).any():
            raise LabelError(self.unknown_message(np.bincount(mask.ravel(), minlength=256), path))
        return ids

    def unknown_values(self, histogram: np.ndarray) -> dict[int, int]:
        """Values the table does not have, with pixel counts, from a histogram of raw values, int (256,)."""
        return {int(v): int(histogram[v]) for v in np.flatnonzero((self._lut == _UNKNOWN) & (histogram > 0))}

    def unknown_message(self, histogram: np.ndarray, path: str | Path) -> str:
        """What to say of a mask with unknown values."""
        found = ", ".join(f"{v} ({n} pixels)" for v, n in self.unknown_values(histogram).items())
        return (
            f"{path}: value {found} is not in label table {self.name!r} (valid: {self.valid_values()}). "
            "Choose the table that these masks were written for; in a table of your own, add the value to "
            "classes (and to values, if it has them) or to ignore; or convert the masks"
        )

    def valid_values(self) -> str:
        """The raw values the table knows, as text."""
        return f"{_ranges(self.values)}; ignored {_ranges(self.ignore_values) or 'none'}"

    def colorize(self, train_ids: np.ndarray) -> np.ndarray:
        """Paint train ids, uint8 (H, W), in the palette: uint8 (H, W, 3) RGB; ignored pixels are black."""
        lut = np.zeros((256, 3), np.uint8)
        lut[: self.num_classes] = self.palette
        return lut[train_ids]

    def from_colors(self, rgb: np.ndarray, path: str | Path) -> np.ndarray:
        """Turn a colour-coded mask into raw values.

        Args:
            rgb: uint8 (H, W, 3), each pixel one of the palette's or the ignored colours.
            path: where the mask comes from, for the message.

        Returns:
            uint8 (H, W): the table's raw values; ignored colours get the first ignored value.

        Raises:
            LabelError: a colour is outside the table; names file, colours and pixel counts.
        """
        lut = _color_lut(self)
        height, width = rgb.shape[:2]
        values = np.empty((height, width), np.uint8)
        rows = max(1, _BLOCK // max(1, width))
        unknown: dict[int, int] = {}
        for top in range(0, height, rows):
            # Four bytes a pixel read as one little-endian number index the table of colours directly.
            rgba = cv2.cvtColor(np.ascontiguousarray(rgb[top : top + rows]), cv2.COLOR_RGB2RGBA)
            code = rgba.view("<u4")[..., 0] & 0xFFFFFF
            block = lut[code]
            bad = block == _UNKNOWN
            if bad.any():
                for color, count in zip(*np.unique(code[bad], return_counts=True), strict=True):
                    unknown[int(color)] = unknown.get(int(color), 0) + int(count)
            values[top : top + rows] = block
        if unknown:
            raise LabelError(self._unknown_colors_message(unknown, path))
        return self._raw_of_id[values]

    @cached_property
    def _raw_of_id(self) -> np.ndarray:
        """uint8 (256,): raw value of each train id; the first ignored value for :data:`IGNORE`."""
        raw = np.zeros(256, np.uint8)
        raw[: self.num_classes] = self.values
        raw[IGNORE] = self.ignore_values[0] if self.ignore_values else IGNORE
        return raw

    def _unknown_colors_message(self, unknown: Mapping[int, int], path: str | Path) -> str:
        most = sorted(unknown.items(), key=lambda item: -item[1])
        shown = [f"RGB {(c & 255, c >> 8 & 255, c >> 16)} ({n} pixels)" for c, n in most[:5]]
        more = f" and {len(most) - 5} more" if len(most) > 5 else ""
        return (
            f"{path}: colour {', '.join(shown)}{more} is not in label table {self.name!r}. "
            "Is this a colour-coded mask of that dataset, stored without loss (PNG or TIFF)?"
        )


def _problem(table: LabelTable) -> str:
    """What is wrong with a table; empty if nothing."""
    known = [*table.values, *table.ignore_values]
    if not 2 <= len(table.classes) <= _UNKNOWN:
        return f"needs 2 to {_UNKNOWN} classes, the background counted, has {len(table.classes)}"
    for what, got in (("values", table.values), ("palette", table.palette)):
        if len(got) != len(table.classes):
            return f"has {len(table.classes)} classes but {len(got)} {what}"
    if any(not 0 <= v <= 255 for v in known):
        return f"values must lie in 0..255, got {known}"
    twice = sorted({v for v in known if known.count(v) > 1})
    if twice:
        return f"value {_ranges(twice)} is used twice among values and ignored values"
    if any(len(c) != 3 or not all(0 <= x <= 255 for x in c) for c in (*table.palette, *table.ignore_colors)):
        return "a colour is three numbers in 0..255"
    if len(set(table.classes)) < len(table.classes):
        return "two classes have the same name"
    colors = [*table.palette, *table.ignore_colors]
    if len(set(colors)) < len(colors):
        return "two labels have the same colour"
    if table.background is not None and not 0 <= table.background < len(table.classes):
        return f"background {table.background} is not a train id (0..{len(table.classes) - 1})"
    return ""


def _ranges(values: Sequence[int]) -> str:
    """``[0, 1, 2, 7]`` -> ``"0..2, 7"``."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


@lru_cache(maxsize=2)
def _color_lut(table: LabelTable) -> np.ndarray:
    """uint8 (2**24,): train id of each colour r + 256 g + 65536 b; ``_UNKNOWN`` where there is none."""
    lut = np.full(1 << 24, _UNKNOWN, np.uint8)
    for color in table.ignore_colors:
        lut[_code(color)] = IGNORE
    for train_id, color in enumerate(table.palette):
        lut[_code(color)] = train_id
    return lut


def _code(color: RGB) -> int:
    return color[0] | color[1] << 8 | color[2] << 16
