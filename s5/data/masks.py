"""Read the masks of a dataset with its label table, for preparation, check, training and evaluation alike.

The coding of a mask is determined by the table and the number of channels, never by its content:

- with a colour code (the table has a palette), three-channel masks and palette images hold colours;
  single-channel masks hold values. In a dataset with colours, a single-channel mask that could be either is
  refused (`s5.data.mask_survey`);
- without a colour code, single-channel masks hold values and palette images indices; three-channel masks hold
  values if the channels are equal everywhere, in all masks of the dataset;
- pixels without data (alpha 0, an internal or external mask, NaN, a declared no-data value or transparent
  palette entry) are ignored. If the declared value belongs to a class of the table, it stays that class,
  because GIS programs often declare 0 where 0 is the background. Preparation and check warn about it.

A value or colour outside the table is an error with the file, the value or colour, and the number of pixels.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from s5.data.image_io import open_stored_mask, require_size
from s5.data.label_table import IGNORE, RGB, UNKNOWN, LabelTable
from s5.data.stored_mask import MaskHeader, Number, StoredMask, require_grey, row_blocks, whole_numbers
from s5.errors import DataError, LabelError

_SHOWN = 5  # indices in a message
_IF_VALUES = (
    "If the masks hold values and the palette is for pictures only, set color_code: false in the table"
)


def read_values(path: str | Path, table: LabelTable) -> np.ndarray:
    """Read a mask as raw values of its table, uint8 (H, W).

    Values of a single-channel mask are not checked against the table, see `LabelTable.encode`.

    Raises:
        ImageError: The file cannot be read, or is not a mask.
        LabelError: A colour is outside the table, or pixels lack data and the table has no ignored value.
    """
    with open_mask(path, table) as mask:
        return mask.all_values()


def read_ids(path: str | Path, table: LabelTable) -> np.ndarray:
    """Read a mask as train ids, uint8 (H, W).

    Raises:
        ImageError: The file cannot be read, or is not a mask.
        LabelError: A value or colour is outside the table.
    """
    return table.encode(read_values(path, table), path)


def require_same_size(mask: Path, mask_size: tuple[int, ...], image: Path, size: tuple[int, ...]) -> None:
    """Refuse a mask that differs in size from its image; sizes are (height, width).

    Raises:
        DataError: They differ; names both files and sizes.
    """
    if mask_size != size:
        raise DataError(
            f"{mask}: mask of {mask_size[0]}x{mask_size[1]} pixels for an image of {size[0]}x{size[1]} "
            f"(height x width), {image}; they must be equal",
        )


@contextmanager
def open_mask(path: str | Path, table: LabelTable) -> Iterator["Mask"]:
    """Open a mask: a TIFF for reading by windows, in bounded memory; other formats are decoded in full.

    Raises:
        ImageError: The file cannot be read, or is not a mask.
    """
    with open_stored_mask(path) as stored:
        yield Mask(stored, table, path)


class Mask:
    """A mask as raw values of its label table.

    Attributes:
        height: Rows.
        width: Columns.
        note: Remark on how it was read, for the user; always empty.
    """

    note = ""

    def __init__(self, stored: StoredMask, table: LabelTable, path: str | Path) -> None:
        self._stored, self._table, self._path = stored, table, path
        header = self.header = stored.header
        self.height, self.width = header.height, header.width
        self._in_colors = in_colors(header, table)
        if not self._in_colors:
            require_grey(stored, path)
        self._no_data = _no_data(header, table)
        if self._in_colors and header.coding == "palette":
            self._lut = _palette_lut(header, table)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read the window at `top`, `left` as raw values of the table, uint8 (height, width).

        Raises:
            ImageError: The file is damaged or has values that are not integers.
            LabelError: A value or colour is outside the table; pixels are counted over the full mask.
        """
        values, unknown = self._decode(top, left, height, width)
        if unknown or (not self._in_colors and self._table.has_unknown(values)):
            self._refuse()
        return values

    def all_values(self) -> np.ndarray:
        """Read the full mask; only colours are checked against the table.

        Raises:
            ImageError: See `read`.
            LabelError: A colour is outside the table.
        """
        require_size(self.height, self.width, self._path)
        values, unknown = self._decode(0, 0, self.height, self.width)
        if unknown:
            self._refuse()
        return values

    def _decode(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[np.ndarray, Counter[int] | Counter[RGB]]:
        """Values of a window, and the pixels of each colour (or palette index) outside the table."""
        pixels, missing = self._stored.read(top, left, height, width)
        missing = self._missing(pixels, missing)
        unknown: Counter[int] | Counter[RGB] = Counter()
        if not self._in_colors:
            values = whole_numbers(pixels[0], missing, self._path)
            self._require_in_palette(values, missing)
        elif self.header.coding == "palette":
            values, unknown = self._by_palette(pixels[0], missing)
        else:
            values, unknown = self._by_colors(pixels, missing)
        return self._ignoring(values, missing), unknown

    def _require_in_palette(self, values: np.ndarray, missing: np.ndarray | None) -> None:
        """Refuse values beyond the file's own palette, if it has one: the file is inconsistent."""
        count = len(self.header.palette)
        if count == 0 or values.max(initial=0) < count:
            return
        outside = values >= count if missing is None else (values >= count) & ~missing
        found, counts = np.unique(values[outside & (values != IGNORE)], return_counts=True)
        if len(found):
            shown = ", ".join(f"{v} ({n} pixels)" for v, n in zip(found[:_SHOWN], counts, strict=False))
            raise LabelError(
                f"{self._path}: index {shown} is outside the file's palette of {count} colours. Save the "
                "mask with a full palette, or as grey"
            )

    def _missing(self, pixels: np.ndarray, missing: np.ndarray | None) -> np.ndarray | None:
        """Where there is no data, including the values declared by the file; None if nowhere."""
        parts = [] if missing is None else [missing]
        parts += [
            np.logical_and.reduce([band == v for band, v in zip(pixels, value, strict=True)])
            for value in self._no_data
        ]
        if not parts:
            return None
        found = np.logical_or.reduce(parts)
        return found if found.any() else None

    def _by_palette(self, indices: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, Counter[int]]:
        ids = self._lut[indices]
        bad = ids == UNKNOWN if missing is None else (ids == UNKNOWN) & ~missing
        found, counts = np.unique(indices[bad], return_counts=True)
        return self._table.raw_values(ids), Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _by_colors(self, pixels: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, Counter[RGB]]:
        rgb = np.ascontiguousarray(whole_numbers(pixels, missing, self._path).transpose(1, 2, 0))
        if missing is not None:
            rgb = np.where(missing[..., None], np.array(self._table.palette[0], np.uint8), rgb)
        return self._table.match_colors(rgb)

    def _ignoring(self, values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        """Replace values without data by the ignored value."""
        if missing is None:
            return values
        ignored = self._table.ignored_value
        if ignored is None:
            free = next(v for v in range(IGNORE, -1, -1) if v not in self._table.values)
            raise LabelError(
                f"{self._path}: {np.count_nonzero(missing)} pixels have no data, but label table "
                f"{self._table.name!r} has no ignored value. Add one that no class uses: ignore: [{free}]"
            )
        return np.where(missing, np.uint8(ignored), values)

    def histogram(self) -> np.ndarray:
        """Pixels of each raw value, int64 (256,).

        Raises:
            ImageError: See `read`.
            LabelError: Pixels lack data and the table has no ignored value.
        """
        counts = np.zeros(256, np.int64)
        for window in row_blocks(self.header):
            counts += np.bincount(self._decode(*window)[0].ravel(), minlength=256)
        return counts

    def _refuse(self) -> NoReturn:
        """Raise an error that lists all values or colours of the mask outside the table."""
        if not self._in_colors:
            raise LabelError(self._table.unknown_message(self.histogram(), self._path))
        unknown: Counter = Counter()
        for window in row_blocks(self.header):
            unknown.update(self._decode(*window)[1])
        if self.header.coding == "palette":
            raise LabelError(f"{self._palette_message(unknown)}. {_IF_VALUES}")
        message = self._table.unknown_colors_message(unknown, self._path)
        grey = all(r == g == b for r, g, b in unknown)
        raise LabelError(f"{message}. {_IF_VALUES}" if grey else message)

    def _palette_message(self, unknown: Counter[int]) -> str:
        """Message for a palette that does not match the table."""
        palette, table = self.header.palette, self._table
        outside = {index: count for index, count in unknown.items() if index >= len(palette)}
        if outside:
            shown = ", ".join(f"{index} ({count} pixels)" for index, count in list(outside.items())[:_SHOWN])
            return f"{self._path}: index {shown} is outside the file's palette of {len(palette)} colours"
        colors: Counter[RGB] = Counter()
        for index, count in unknown.items():
            colors[palette[index]] += count
        index = unknown.most_common(1)[0][0]
        value_id = table.id_of(index)
        meant = "" if value_id is None else f" (as a value: {table.name_of(value_id)})"
        return (
            f"{table.unknown_colors_message(colors, self._path)}. Index {index}{meant} of the file's own "
            f"palette is RGB {palette[index]}"
        )


def in_colors(header: MaskHeader, table: LabelTable) -> bool:
    """Whether a mask holds colours, not values."""
    return table.color_code and header.coding != "values"


def declared_class(header: MaskHeader, table: LabelTable) -> str:
    """The class whose value a file declares as no-data, such as `0, class 'ground'`; empty if none."""
    for value, train_id in _declared(header, table).items():
        if train_id is not None and train_id != IGNORE:
            what = f"{value[0]}" if len(value) == 1 else f"RGB {value}"
            if header.coding == "palette" and in_colors(header, table):
                what = f"index {what} of their palette (RGB {header.palette[int(value[0])]})"
            return f"{what}, {table.name_of(train_id)}"
    return ""


def _no_data(header: MaskHeader, table: LabelTable) -> list[tuple[Number, ...]]:
    """Declared no-data values outside the table: a number for each band that is read."""
    return [value for value, train_id in _declared(header, table).items() if train_id is None]


def _declared(header: MaskHeader, table: LabelTable) -> dict[tuple[Number, ...], int | None]:
    """Declared no-data values, a number for each band, with their train ids in the table (None: outside)."""
    if header.coding == "colors":
        color = header.no_data_color
        if color is None:
            return {}
        if in_colors(header, table):
            found = [i for known, i in table.color_ids.items() if known == color]  # 0.0 is equal to 0
            return {color: found[0] if found else None}
        return {color: table.id_of(color[0])} if len(set(color)) == 1 else {}
    if in_colors(header, table):
        return {(i,): _color_id(header, table, i) for i in header.no_data}
    return {(value,): table.id_of(value) for value in header.no_data}


def _color_id(header: MaskHeader, table: LabelTable, index: Number) -> int | None:
    """Train id of the colour of a palette index; None if the palette or the table lacks it."""
    is_entry = index == int(index) and 0 <= index < len(header.palette)
    return table.color_ids.get(header.palette[int(index)]) if is_entry else None


def _palette_lut(header: MaskHeader, table: LabelTable) -> np.ndarray:
    """uint8 (65536,): train id of each index; `UNKNOWN` outside the palette or the table."""
    lut = np.full(1 << 16, UNKNOWN, np.uint8)
    lut[: len(header.palette)] = [table.color_ids.get(color, UNKNOWN) for color in header.palette]
    return lut
