"""How the masks of a dataset are coded, judged together where single files are ambiguous."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s5.data.image_io import open_stored_mask, read_mask_header
from s5.data.label_table import LabelTable
from s5.data.masks import declared_class, in_colors, open_mask
from s5.data.stored_mask import Coding, MaskHeader, require_grey
from s5.errors import DataError

logger = logging.getLogger(__name__)

_SHOWN = 5  # masks in an error
_THREADS = 8  # headers are small: the time is spent opening files


@dataclass
class MaskSurvey:
    """How the masks of a dataset are coded.

    Attributes:
        codings: Number of masks of each coding.
        colored: A mask that holds colours; empty if none does.
        declared: Number of masks per class whose value they declare as no-data, see
            `s5.data.masks.declared_class`.
        unclear: Single-channel masks that may hold values or colours, and how these readings differ.
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
        """Record how a single-channel mask would differ if it held colours; `histogram` is int (256,)."""
        if difference := _as_colors(histogram, table):
            self.unclear[str(path)] = difference

    def update(self, other: "MaskSurvey") -> None:
        """Add the masks of another part of the dataset."""
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
        """Ambiguous masks by path, with the reason.

        PNG optimisers save an image that has only greys with a single channel. So a single-channel mask among
        colour-coded ones may hold colours, too.
        """
        if not self.colored:
            return {}
        return {
            path: f"{path}: has one channel, while other masks, such as {self.colored}, hold colours, and "
            f"{difference}. If it holds colours, save it as RGB; if it holds values, put such masks into a "
            "separate dataset"
            for path, difference in self.unclear.items()
        }

    def warnings(self, table: LabelTable) -> list[str]:
        """Warnings about the masks."""
        return [
            f"{count} mask{'s declare' if count > 1 else ' declares'} {what}, as no-data. The table "
            "takes precedence, so these pixels count as labeled. If they are not labeled, remove the class "
            f"from label table {table.name!r} or give it another value or colour; if they are, remove the "
            "no-data declaration from the files"
            for what, count in sorted(self.declared.items())
        ]


def refuse_together(paths: Sequence[Path], table: LabelTable) -> dict[str, str]:
    """Check all masks of a dataset together; returns the ambiguous ones, with the reason.

    Unreadable files are skipped: opening them raises the error. Warnings are logged.
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
    """Refuse a dataset with ambiguous masks.

    Args:
        refused: Result of `MaskSurvey.refused` or `refuse_together`.

    Raises:
        DataError: There are ambiguous masks; the message lists the first ones.
    """
    if refused:
        shown = "\n".join(f"  {message}" for message in list(refused.values())[:_SHOWN])
        raise DataError(f"{len(refused)} masks are ambiguous among the others, the first:\n{shown}")


def _refuse_grey(is_grey: dict[Path, bool]) -> dict[str, str]:
    """Three-channel masks with equal channels, if other three-channel masks are coloured."""
    colored = next((path for path, grey in is_grey.items() if not grey), None)
    if colored is None:
        return {}
    why = (
        "its three channels are equal, but perhaps only because all its colours are grey: others, such as "
        f"{colored}, hold colours. Add a palette to the label table: the colour of each class in the masks"
    )
    return {str(path): f"{path}: {why}" for path, grey in is_grey.items() if grey}


def _as_colors(histogram: np.ndarray, table: LabelTable) -> str:
    """How a single-channel mask would differ if it held colours; empty if it would not or cannot."""
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
    """Pixels of each value, int64 (256,); zeros for an unreadable mask."""
    try:
        with open_mask(path, table) as mask:
            return mask.histogram()
    except DataError:
        return np.zeros(256, np.int64)
