"""How the masks of a dataset are coded, all together: what single files cannot tell."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s5.data.errors import DataError
from s5.data.image_io import open_stored_mask, read_mask_header
from s5.data.label_table import LabelTable
from s5.data.masks import declared_class, in_colors, open_mask
from s5.data.stored_mask import Coding, MaskHeader, require_grey

logger = logging.getLogger(__name__)

_SHOWN = 5  # masks in an error
_THREADS = 8  # headers are small, so that the time is that of opening files


@dataclass
class MaskSurvey:
    """How the masks of a dataset are coded.

    Attributes:
        codings: Number of masks of each coding.
        colored: A mask that holds colours; empty if none does.
        declared: Number of masks per class that they declare to be no data, see
            `s5.data.masks.declared_class`.
        unclear: Masks of one channel that may hold values or colours, and how these differ.
    """

    codings: Counter[Coding] = field(default_factory=Counter)
    colored: str = ""
    declared: Counter[str] = field(default_factory=Counter)
    unclear: dict[str, str] = field(default_factory=dict)

    def add(self, path: str | Path, header: MaskHeader, table: LabelTable) -> None:
        """Count a mask."""
        self.codings[header.coding] += 1
        if in_colors(header, table):
            self.colored = self.colored or str(path)
        if declared := declared_class(header, table):
            self.declared[declared] += 1

    def add_values(self, path: str | Path, histogram: np.ndarray, table: LabelTable) -> None:
        """Note of a mask of one channel what it would mean as colours; `histogram` is int (256,)."""
        if difference := _as_colors(histogram, table):
            self.unclear[str(path)] = difference

    def update(self, other: "MaskSurvey") -> None:
        """Take in the masks of another part of the dataset."""
        self.codings.update(other.codings)
        self.colored = self.colored or other.colored
        self.declared.update(other.declared)
        self.unclear |= other.unclear

    def as_dict(self) -> dict[str, Any]:
        """The survey as plain data, for JSON; `of_dict` reads it."""
        return {**vars(self), "codings": dict(self.codings), "declared": dict(self.declared)}

    @classmethod
    def of_dict(cls, data: dict[str, Any]) -> "MaskSurvey":
        """The survey of `as_dict`."""
        counts = {name: Counter(data[name]) for name in ("codings", "declared")}
        return cls(**{**data, **counts})

    def refused(self) -> dict[str, str]:
        """Masks that cannot be read beside the others, by path, and why.

        Tools that make pictures smaller save one that shows only greys with one channel. So, among masks that
        hold colours, one of one channel may hold colours, too.
        """
        if not self.colored:
            return {}
        return {
            path: f"{path}: has one channel, while other masks, such as {self.colored}, hold colours, and "
            f"{difference}. If it shows colours, save it as RGB; if it holds values, keep such masks in a "
            "dataset of their own"
            for path, difference in self.unclear.items()
        }

    def warnings(self, table: LabelTable) -> list[str]:
        """What the user should know of the masks."""
        return [
            f"{count} mask{'s declare' if count > 1 else ' declares'} {what}, to be no data. The table "
            "decides, so such pixels count. If they are not labeled, take the class out of label table "
            f"{table.name!r} or give it another value or colour; if they are, remove the declaration from "
            "the files"
            for what, count in sorted(self.declared.items())
        ]


def refuse_together(paths: Sequence[Path], table: LabelTable) -> dict[str, str]:
    """Look at all masks of a dataset, and say which ones cannot be read beside the others, and why.

    Files that cannot be read by themselves are left out: opening them says why. Warnings are logged.
    """
    survey = MaskSurvey()
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = dict(zip(paths, pool.map(_header, paths), strict=True))
        for path, header in headers.items():
            if header is not None:
                survey.add(path, header, table)
        for message in survey.warnings(table):
            logger.warning("%s", message)
        if not table.color_code:
            three = [path for path, header in headers.items() if header and header.coding == "colors"]
            return _refuse_grey(dict(zip(three, pool.map(_is_grey, three), strict=True)))
        if survey.colored:
            one = [path for path, header in headers.items() if header and header.coding == "values"]
            for path, histogram in zip(one, pool.map(lambda path: _histogram(path, table), one), strict=True):
                survey.add_values(path, histogram, table)
        return survey.refused()


def require_readable_together(refused: dict[str, str]) -> None:
    """Refuse a dataset of which some masks cannot be read beside the others.

    Args:
        refused: Of `MaskSurvey.refused` or `refuse_together`.

    Raises:
        DataError: Naming the first of them.
    """
    if refused:
        shown = "\n".join(f"  {message}" for message in list(refused.values())[:_SHOWN])
        raise DataError(f"{len(refused)} masks cannot be read beside the others, the first:\n{shown}")


def _refuse_grey(is_grey: dict[Path, bool]) -> dict[str, str]:
    """Masks of three equal channels, if not all masks of three channels are so."""
    colored = next((path for path, grey in is_grey.items() if not grey), None)
    if colored is None:
        return {}
    why = (
        "its three channels are equal, but perhaps because it shows greys only: others, such as "
        f"{colored}, hold colours. Give the label table a palette, the colour of each class in the masks"
    )
    return {str(path): f"{path}: {why}" for path, grey in is_grey.items() if grey}


def _as_colors(histogram: np.ndarray, table: LabelTable) -> str:
    """How a mask of one channel would differ if it held colours, as text; empty if it does not or cannot."""
    values = [int(value) for value in np.flatnonzero(histogram)]
    if not all((value, value, value) in table.color_ids for value in values):
        return ""
    for value in values:
        as_value, as_color = table.id_of(value), table.color_ids[value, value, value]
        if as_value is not None and as_value != as_color:
            return (
                f"{value} ({histogram[value]} pixels) is {table.name_of(as_value)} as a value but "
                f"{table.name_of(as_color)} as the colour RGB {(value, value, value)}"
            )
    return ""


def _header(path: Path) -> MaskHeader | None:
    try:
        return read_mask_header(path)
    except DataError:
        return None


def _is_grey(path: Path) -> bool:
    try:
        with open_stored_mask(path) as stored:
            require_grey(stored, path)
    except DataError:
        return False
    return True


def _histogram(path: Path, table: LabelTable) -> np.ndarray:
    """int64 (256,), pixels of each value; zeros for a mask that cannot be read."""
    try:
        with open_mask(path, table) as mask:
            return mask.histogram()
    except DataError:
        return np.zeros(256, np.int64)
