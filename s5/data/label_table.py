"""The meaning of a dataset's mask values, and the conversions between values, train ids and colours."""

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from s5.errors import LabelError

IGNORE = 255
"""Train id of pixels that count nowhere: neither in the loss nor in the metrics."""

UNKNOWN = 254
"""Marks a raw value or colour outside the table; never a train id."""

_SHOWN = 5  # colours in a message
_BLOCK = 1 << 20  # pixels converted at a time by match_colors, so that temporaries stay in the cache

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class LabelTable:
    """The meaning of the mask values of a dataset.

    Attributes:
        name: Name of the table, used in messages.
        classes: Class names in the order of the train ids.
        values: Raw mask value of each train id.
        palette: RGB colour (0..255) of each train id.
        ignore_values: Raw mask values that become :data:`IGNORE`.
        background: Train id of the background class, or None.
        ignore_colors: RGB colours of a colour-coded mask that mean "ignore".
        color_code: Whether the palette is the colour code of colour-coded masks; otherwise it only colours
            visualisations, and no mask of the dataset holds colours (see :mod:`s5.data.masks`).
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    palette: tuple[RGB, ...]
    ignore_values: tuple[int, ...] = (255,)
    background: int | None = None
    ignore_colors: tuple[RGB, ...] = ()
    color_code: bool = True

    def __post_init__(self) -> None:
        """Refuse tables in which a value would have two meanings or none."""
        problem = _problem(self)
        if problem:
            raise LabelError(f"label table {self.name!r}: {problem}")

    @property
    def no_data(self) -> int:
        """Raw value of a predicted mask where the image has no data.

        255 if the table ignores it, else the first ignored value; without any, the highest value of no class.
        """
        ignored = self.ignored_value
        return max(set(range(256)) - set(self.values)) if ignored is None else ignored

    @property
    def num_classes(self) -> int:
        """Number of classes, including background but not ignored pixels."""
        return len(self.classes)

    def as_mapping(self) -> dict[str, Any]:
        """The table as plain data (for YAML, JSON, checkpoints); `get_table` restores it."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "values": list(self.values),
            "palette": [list(color) for color in self.palette],
            "ignore": list(self.ignore_values),
            "background": self.background,
            "ignore_colors": [list(color) for color in self.ignore_colors],
            "color_code": self.color_code,
        }

    @cached_property
    def _lut(self) -> np.ndarray:
        """uint8 (256,): train id of each raw value, `UNKNOWN` where there is none."""
        lut = np.full(256, UNKNOWN, np.uint8)
        lut[list(self.values)] = np.arange(self.num_classes, dtype=np.uint8)
        lut[list(self.ignore_values)] = IGNORE
        return lut

    @cached_property
    def color_ids(self) -> dict[RGB, int]:
        """Train id of each colour of the code, :data:`IGNORE` for ignored colours; empty without a code."""
        if not self.color_code:
            return {}
        return {color: i for i, color in enumerate(self.palette)} | dict.fromkeys(self.ignore_colors, IGNORE)

    @property
    def ignored_value(self) -> int | None:
        """Raw value that ignored pixels are written as: 255 if it is ignored; None if nothing is."""
        if IGNORE in self.ignore_values:
            return IGNORE
        return self.ignore_values[0] if self.ignore_values else None

    def id_of(self, value: float) -> int | None:
        """Train id of a raw value, :data:`IGNORE` for an ignored one; None if the table does not have it."""
        found = int(self._lut[int(value)]) if 0 <= value <= 255 and value == int(value) else UNKNOWN
        return None if found == UNKNOWN else found

    def has_unknown(self, mask: np.ndarray) -> bool:
        """Whether raw values, uint8 (H, W), are outside the table."""
        return bool((cv2.LUT(mask, self._lut) == UNKNOWN).any())

    def name_of(self, train_id: int) -> str:
        """The class of a train id, as text."""
        return "ignored" if train_id == IGNORE else f"class {self.classes[train_id]!r}"

    def encode(self, mask: np.ndarray, path: str | Path) -> np.ndarray:
        """Turn raw mask values into train ids.

        Args:
            mask: uint8 (H, W), raw values as stored in the file.
            path: Path of the mask, for the message.

        Returns:
            uint8 (H, W): train ids 0..num_classes-1, and :data:`IGNORE`.

        Raises:
            LabelError: A value is outside the table; the message lists values, pixel counts and valid values.
        """
        ids = cv2.LUT(mask, self._lut)
        if (ids == UNKNOWN).any():
            raise LabelError(self.unknown_message(np.bincount(mask.ravel(), minlength=256), path))
        return ids

    def unknown_values(self, histogram: np.ndarray) -> dict[int, int]:
        """Values the table does not have, with pixel counts, from a histogram of raw values, int (256,)."""
        return {int(v): int(histogram[v]) for v in np.flatnonzero((self._lut == UNKNOWN) & (histogram > 0))}

    def unknown_message(self, histogram: np.ndarray, path: str | Path) -> str:
        """Message for a mask with unknown values."""
        found = ", ".join(f"{v} ({n} pixels)" for v, n in self.unknown_values(histogram).items())
        return (
            f"{path}: value {found} is not in label table {self.name!r} (valid: {self.valid_values()}). "
            "Choose the table that these masks were written for; in a table of your own, add the value to "
            "classes (and to values, if it has them) or to ignore; or convert the masks"
        ) + self._grey_hint(histogram)

    def _grey_hint(self, histogram: np.ndarray) -> str:
        """Addition to the message if an unknown value is a grey of the colour code."""
        for value in self.unknown_values(histogram):
            if (value, value, value) in self.color_ids:
                what = self.name_of(self.color_ids[value, value, value])
                return (
                    f". RGB {(value, value, value)} is the colour of {what}, but a single-channel mask holds "
                    "values: save masks of grey colours as RGB, or set values"
                )
        return ""

    def valid_values(self) -> str:
        """The raw values the table knows, as text."""
        return f"{_ranges(self.values)}; ignored {_ranges(self.ignore_values) or 'none'}"

    def colorize(self, train_ids: np.ndarray, ignored: RGB = (0, 0, 0)) -> np.ndarray:
        """Paint train ids, uint8 (H, W), in the palette: uint8 (H, W, 3) RGB; ignored pixels in `ignored`."""
        lut = np.full((256, 3), ignored, np.uint8)
        lut[: self.num_classes] = self.palette
        return lut[train_ids]

    def from_colors(self, rgb: np.ndarray, path: str | Path) -> np.ndarray:
        """Turn a colour-coded mask into raw values.

        Args:
            rgb: uint8 (H, W, 3), each pixel one of the palette's or the ignored colours.
            path: Path of the mask, for the message.

        Returns:
            uint8 (H, W): the table's raw values; ignored colours get :attr:`ignored_value`.

        Raises:
            LabelError: A colour is outside the table; the message lists colours and pixel counts.
        """
        values, unknown = self.match_colors(rgb)
        if unknown:
            raise LabelError(self.unknown_colors_message(unknown, path))
        return values

    def match_colors(self, rgb: np.ndarray) -> tuple[np.ndarray, Counter[RGB]]:
        """Like :meth:`from_colors`, but return the pixel counts of unknown colours instead of raising."""
        lut = _color_lut(self)
        height, width = rgb.shape[:2]
        values = np.empty((height, width), np.uint8)
        rows = max(1, _BLOCK // max(1, width))
        unknown: Counter[RGB] = Counter()
        for top in range(0, height, rows):
            # The four bytes of a pixel, read as a little-endian integer, index the table of colours directly.
            rgba = cv2.cvtColor(np.ascontiguousarray(rgb[top : top + rows]), cv2.COLOR_RGB2RGBA)
            code = rgba.view("<u4")[..., 0] & 0xFFFFFF
            block = lut[code]
            bad = block == UNKNOWN
            if bad.any():
                for found, count in zip(*np.unique(code[bad], return_counts=True), strict=True):
                    c = int(found)
                    unknown[c & 255, c >> 8 & 255, c >> 16] += int(count)
            values[top : top + rows] = block
        return self.raw_values(values), unknown

    def raw_values(self, ids: np.ndarray) -> np.ndarray:
        """Raw values of train ids and :data:`IGNORE`, uint8 (H, W)."""
        return cv2.LUT(ids, self._raw_of_id)

    @cached_property
    def _raw_of_id(self) -> np.ndarray:
        """uint8 (256,): raw value of each train id and of :data:`IGNORE`."""
        raw = np.zeros(256, np.uint8)
        raw[: self.num_classes] = self.values
        raw[IGNORE] = IGNORE if self.ignored_value is None else self.ignored_value
        return raw

    def unknown_colors_message(self, unknown: Counter[RGB], path: str | Path) -> str:
        """Message for a mask with colours that the table does not have."""
        most = unknown.most_common(_SHOWN)
        shown = ", ".join(f"RGB {color} ({count} pixels)" for color, count in most)
        more = f" and {len(unknown) - len(most)} more" if len(unknown) > len(most) else ""
        return (
            f"{path}: colour {shown}{more} is not in label table {self.name!r}; {self._nearest(most[0][0])}. "
            "Is this a colour-coded mask of that dataset, stored without loss (PNG or TIFF) and without "
            "smoothed edges? In a table of your own, add the colour to palette or ignore_colors"
        )

    def _nearest(self, color: RGB) -> str:
        """The colour of the table nearest to `color`, as text."""
        if not self.color_ids:
            return "it has no colour code"
        nearest = min(self.color_ids, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, color, strict=True)))
        return f"nearest to RGB {color} is RGB {nearest}, {self.name_of(self.color_ids[nearest])}"


def build_table(
    name: str,
    *classes: tuple[str, RGB],
    values: tuple[int, ...] | None = None,
    background: int | None = None,
    ignore_values: tuple[int, ...] = (IGNORE,),
    ignore_colors: tuple[RGB, ...] = (),
    color_code: bool = True,
) -> LabelTable:
    """Create a table from (class, RGB) pairs by train id; raw values default to 0, 1, 2 ..."""
    names, palette = zip(*classes, strict=True)
    return LabelTable(
        name=name,
        classes=names,
        values=tuple(range(len(names))) if values is None else values,
        palette=palette,
        ignore_values=ignore_values,
        background=background,
        ignore_colors=ignore_colors,
        color_code=color_code,
    )


def distinct_colors(n: int) -> list[RGB]:
    """`n` distinguishable colours: hues spaced by the golden ratio, alternating brightness."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.65, (0.95, 0.65)[i % 2]) for i in range(n)]
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colors]


def spare_color(palette: Sequence[RGB]) -> RGB:
    """A colour far from all of these."""
    steps = (255, 0, 128)
    candidates = [(r, g, b) for r in steps for g in steps for b in steps]
    return max(
        candidates, key=lambda c: min(sum((a - b) ** 2 for a, b in zip(c, p, strict=True)) for p in palette)
    )


def _problem(table: LabelTable) -> str:
    """Description of an error in a table; empty if it is valid."""
    known = [*table.values, *table.ignore_values]
    if not 2 <= len(table.classes) <= UNKNOWN:
        return f"needs 2 to {UNKNOWN} classes, the background counted, has {len(table.classes)}"
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
        color = next(c for c in colors if colors.count(c) > 1)
        of_one = " (a single class gets a black background; name both classes)" if color == (0, 0, 0) else ""
        return f"two labels have the same colour, RGB {color}{of_one}"
    if table.ignore_colors and not table.color_code:
        return (
            "ignore_colors are colours of colour-coded masks, whose classes need a palette (color_code: true)"
        )
    if table.ignore_colors and table.ignored_value is None:
        return "ignore_colors need a value that such pixels get: add a free one to ignore, such as 254"
    if table.background is not None and not 0 <= table.background < len(table.classes):
        return f"background {table.background} is not a train id (0..{len(table.classes) - 1})"
    return ""


def _ranges(values: Sequence[int]) -> str:
    """Format numbers with ranges: `[0, 1, 2, 7]` becomes `"0..2, 7"`."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


@lru_cache(maxsize=4)
def _color_lut(table: LabelTable) -> np.ndarray:
    """uint8 (2**24,): train id of each colour r + 256 g + 65536 b; `UNKNOWN` where there is none."""
    lut = np.full(1 << 24, UNKNOWN, np.uint8)
    for color, train_id in table.color_ids.items():
        lut[_code(color)] = train_id
    return lut


def _code(color: RGB) -> int:
    return color[0] | color[1] << 8 | color[2] << 16
