"""Report of the check of a split, which also recognises masks that follow another label convention.

Masks of another convention often have no value outside the table, so training would run and learn the wrong
classes: masks in the mmsegmentation convention, one higher than ids that count from 0, with 0 at object
boundaries; masks shifted down to train ids; masks of 0 and 255 read as 0 and 1; colour-coded masks converted
to grey.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from s5.data.datasets import DATASETS, TABLES
from s5.data.datasets.base import Dataset
from s5.data.label_table import IGNORE, LabelTable
from s5.data.mask_survey import MaskSurvey
from s5.errors import printable

_MIN_BORDERS = 200  # differing neighbours; with fewer, borders are not judged
_ON_BORDERS = 0.98  # share of the borders next to a 0 if 0 is drawn between all objects
_MORE_THAN_NO_DATA = 0.2  # share of pixels; no-data, which is 0 in LoveDA, is rare, background is not
_THIN = 15  # pixels of 0 per change to or from 0 if 0 is drawn as a line
# Share of the borders at areas inside the images; of roofs and roads 0.7 and more, of padding 0.
_INSIDE = 0.2


@dataclass(frozen=True)
class Problem:
    """An error in the data.

    Attributes:
        kind: `missing`, `corrupt`, `values` (values or colours outside the table), `size` (mask and image
            differ), `colours` (colour-coded, but the table has no palette; or ambiguous),
            `no mask`, `line` (malformed line of the split), `convention` (the masks of the split follow
            another label convention) or `ignored` (all pixels are ignored).
        path: The file.
        message: The full message, including the file.
    """

    kind: str
    path: str
    message: str


@dataclass
class Report:
    """Findings on a split, or on part of one; `add` combines parts.

    Attributes:
        split: Path of the split file.
        table: Label table of the masks; None for unlabeled images.
        samples: Number of lines checked.
        problems: Errors, in the order of the split.
        warnings: Messages about possible errors, for the user to judge.
        sizes: Number of images per (height, width).
        raw_histogram: int64 (256,), pixels per raw mask value over all readable masks.
        borders: int64 (5,), over every fourth row of these masks: horizontal neighbours with different
            values, those among them where one value is 0, pixels with value 0, and runs of 255 and of 0 that
            do not touch the left or right border.
        masks: How the masks are coded.
        without_data: Labeled pixels where the image has no data; excluded from the two counts above.
    """

    split: str
    table: LabelTable | None
    samples: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    raw_histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    borders: np.ndarray = field(default_factory=lambda: np.zeros(5, np.int64))
    masks: MaskSurvey = field(default_factory=MaskSurvey)
    without_data: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.problems

    @property
    def errors(self) -> list[str]:
        """One message per error; each names its file."""
        return [printable(problem.message) for problem in self.problems]

    @property
    def histogram(self) -> np.ndarray:
        """int64 (num_classes,): pixels per class, in the order of the train ids."""
        return self.raw_histogram[list(self.table.values)] if self.table else np.zeros(0, np.int64)

    @property
    def ignored(self) -> int:
        """Labeled pixels that are ignored, by their value or because the image has no data there."""
        if self.table is None:
            return 0
        return int(self.raw_histogram[list(self.table.ignore_values)].sum()) + self.without_data

    def add(self, other: "Report") -> None:
        """Add the findings on another part of the split."""
        self.samples += other.samples
        self.problems += other.problems
        self.sizes.update(other.sizes)
        self.raw_histogram += other.raw_histogram
        self.borders += other.borders
        self.masks.update(other.masks)
        self.without_data += other.without_data

    def judge_together(self) -> None:
        """Add the findings that need all masks of the split."""
        if self.table is None:
            return
        pixels = int(self.raw_histogram.sum()) + self.without_data
        if self.ignored == pixels > 0:
            message = (
                f"{self.split}: no labeled pixel: all {pixels} pixels of its masks are ignored in label "
                f"table {self.table.name!r} (valid: {self.table.valid_values()}). Correct its "
                "`values` and `ignore`"
            )
            self.problems.insert(0, Problem("ignored", self.split, message))
        self.problems += [Problem("colours", path, text) for path, text in self.masks.refused().items()]
        self.warnings += [f"{self.split}: {message}" for message in self.masks.warnings(self.table)]
        suspicion = explain_convention(self.table, self.raw_histogram, self.borders)
        if suspicion is None:
            return
        message = f"{self.split}: {suspicion.message}"
        if suspicion.is_error:
            self.problems.insert(0, Problem("convention", self.split, message))
        else:
            self.warnings.append(message)

    def summary(self, show: int = 20) -> str:
        """The findings as text, with the first `show` errors."""
        lines = [f"{self.split}: {self.samples} samples", *self._size_lines(), *self._label_lines()]
        if self.warnings:
            lines += [f"{len(self.warnings)} warnings:", *(f"  {message}" for message in self.warnings)]
        kinds = Counter(problem.kind for problem in self.problems)
        if self.ok:
            return "\n".join([*lines, "no errors"])
        lines.append(f"{len(self.problems)} errors: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
        lines += [f"  {message}" for message in self.errors[:show]]
        if len(self.problems) > show:
            lines.append(f"  ... and {len(self.problems) - show} more")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The findings as plain data, for JSON."""
        table = self.table
        shares = self.histogram / max(1, self.histogram.sum())
        classes = zip(table.classes, self.histogram.tolist(), shares.tolist(), strict=True) if table else ()
        return {
            "split": printable(self.split),
            "table": table.name if table else None,
            "samples": self.samples,
            "ok": self.ok,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.most_common()],
            "classes": [{"name": name, "pixels": n, "share": share} for name, n, share in classes],
            "ignored_pixels": self.ignored,
            "without_data": self.without_data,
            "masks": self.masks.as_dict(),
            "warnings": [printable(message) for message in self.warnings],
            "errors": [
                {name: printable(text) for name, text in vars(problem).items()} for problem in self.problems
            ],
        }

    def _size_lines(self) -> list[str]:
        if not self.sizes:
            return []
        common = ", ".join(f"{h}x{w} ({n})" for (h, w), n in self.sizes.most_common(5))
        more = f" and {len(self.sizes) - 5} other sizes" if len(self.sizes) > 5 else ""
        heights, widths = zip(*self.sizes, strict=True)
        return [
            f"image sizes (height x width): {common}{more}",
            f"  smallest height {min(heights)}, width {min(widths)}; "
            f"largest height {max(heights)}, width {max(widths)}",
        ]

    def _label_lines(self) -> list[str]:
        if self.table is None or not self.raw_histogram.any():
            return []
        counted, ignored = int(self.histogram.sum()), self.ignored
        lines = [f"label table {self.table.name!r}: share of the {counted} labeled pixels"]
        width = max(map(len, self.table.classes))
        for train_id, (name, pixels) in enumerate(zip(self.table.classes, self.histogram, strict=True)):
            lines.append(f"  {train_id:3d} {name:{width}} {100 * pixels / max(1, counted):8.4f} %  {pixels}")
        share = 100 / max(1, counted + ignored)
        lines.append(f"  ignored {share * ignored:.4f} % of all pixels")
        if self.without_data:
            lines.append(f"    {share * self.without_data:.4f} % because the image has no data there")
        return lines


class Suspicion(NamedTuple):
    """A (possible) label convention mismatch of a split.

    Attributes:
        message: The finding and the remedies.
        is_error: Whether to refuse training; otherwise the user's classes may also explain the finding.
    """

    message: str
    is_error: bool


def explain_convention(table: LabelTable, histogram: np.ndarray, borders: np.ndarray) -> Suspicion | None:
    """Check the label convention of all masks of a split together.

    For the table of a known dataset, any sign of another convention is an error. For a user's own table it is
    an error if a value is outside the table or if there is no other explanation.

    Args:
        table: The label table of the masks.
        histogram: int64 (256,), pixels per raw value.
        borders: int64 (5,), see `Report.borders`.

    Returns:
        The finding, or None.
    """
    present = {int(value) for value in np.flatnonzero(histogram)}
    if not present:
        return None
    return (
        _zero_and_255(table, present, borders)
        or _grey_colors(table, present)
        or _one_higher(table, present, borders)
        or _one_lower(table, present, histogram, borders)
    )


def _zero_and_255(table: LabelTable, present: set[int], borders: np.ndarray) -> Suspicion | None:
    """Binary masks of 0 and 1 where 0 and 255 are expected, or the other way round."""
    if table.values == (0, 255) and present <= {0, 1} and 1 in present and 1 not in table.ignore_values:
        found = f"the masks hold 0 and 1, but {_named(table)} expects 0 and 255. Remove `values` and `ignore`"
        return Suspicion(found, is_error=True)
    if table.values != (0, 1) or present != {0, IGNORE} or IGNORE not in table.ignore_values:
        return None
    name = repr(table.classes[1])
    inside = bool(2 * borders[3] > _INSIDE * borders[0])  # padding touches the borders of the images
    where = "lies inside the images, like objects" if inside else "touches the borders of the images"
    return Suspicion(
        f"the masks hold 0 and 255; read with {_named(table)}, 255 is ignored and {name} never occurs. 255 "
        f"{where}. If it is {name}, set values: [0, 255] (for a single class values: [255]) and ignore: []. "
        f"If it is ignored and these images have no {name}, the masks are correct: set 'check: false'",
        is_error=inside,
    )


def _grey_colors(table: LabelTable, present: set[int]) -> Suspicion | None:
    """Colour-coded masks that were converted to grey."""
    grey = {round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in (*table.palette, *table.ignore_colors)}
    unknown = present - {*table.values, *table.ignore_values}
    if len(unknown) < 2 or not present <= {g + d for g in grey for d in (-1, 0, 1)}:
        return None
    return Suspicion(
        f"the values {_listed(present)} are the colours of {_named(table)} converted to grey: colour-coded "
        "masks were opened as grey images. Use the colour-coded files, which "
        "'python -m s5.data.prepare' converts (for your own data: 'labeled', with the colours as palette)",
        is_error=True,
    )


def _one_higher(table: LabelTable, present: set[int], borders: np.ndarray) -> Suspicion | None:
    """Masks in the mmsegmentation convention, read with a table that counts from 0."""
    highest = max(v for v in (*table.values, *table.ignore_values) if v != IGNORE)
    if table.values != tuple(range(table.num_classes)) or max(present) > highest + 1:
        return None
    # A background of 0 naturally lies between objects.
    lines = table.background != 0 and len(present) > 3 and _zero_is_between_objects(borders)
    beyond = highest + 1 in present
    dataset = _dataset(table)
    common = dataset is not None and dataset.common_class
    shifted = common and (beyond or present == set(range(1, highest + 1)))
    if not (lines or shifted or (0 not in present and beyond)):
        return None
    where = ", 0 only between objects" if lines else "" if 0 in present else ", and no 0"
    found, set_to = f"the masks hold {_listed(present)}{where}", _table_one_higher(table)
    if not (beyond or _is_known(table)):
        return Suspicion(
            f"{found}, like the boundary in masks of the mmsegmentation convention, one higher than in "
            f"{_named(table)}. Is 0 a boundary or ignored, and do classes count from 1? {set_to}. If 0 is "
            f"{table.classes[0]!r}, the masks are correct: 'background: 0' (if it is one) or 'check: false' "
            "silences this warning",
            is_error=False,
        )
    return Suspicion(
        f"{found}: they follow the mmsegmentation convention, one higher than in {_named(table)} (0 "
        "is the boundary or ignored, classes count from 1), so every class would be read as the next one. "
        f"{set_to}{_otherwise(table, present)}",
        is_error=True,
    )


def _one_lower(
    table: LabelTable, present: set[int], histogram: np.ndarray, borders: np.ndarray
) -> Suspicion | None:
    """Masks that count from 0, read with a table that counts from 1."""
    highest, others, dataset = table.num_classes, present - {IGNORE}, _dataset(table)
    if table.values != tuple(range(1, highest + 1)) or 0 not in table.ignore_values or 0 not in others:
        return None
    if dataset is not None:  # ignored values are shifted as well
        highest = max(v for v in (*table.values, *table.ignore_values) if v != IGNORE)
    if max(others) >= highest:
        return None
    share = histogram[0] / histogram.sum()
    shifted = IGNORE in present and IGNORE not in table.ignore_values
    zero = "" if dataset is None else dataset.zero
    if zero == "boundary":
        shifted |= share > 0.05 and borders[0] >= _MIN_BORDERS and not _zero_is_between_objects(borders)
    elif zero == "no data":
        # No-data is at the image borders, where a scene ends; background is between the other classes.
        inside = borders[1] >= _MIN_BORDERS and bool(2 * borders[4] > _INSIDE * borders[1])
        if inside and not shifted and share <= _MORE_THAN_NO_DATA:
            return _maybe_one_lower(table, present, share)
        shifted |= inside and share > _MORE_THAN_NO_DATA
    if not shifted:
        return None
    return Suspicion(
        f"the masks hold {_listed(present)}, {100 * share:.0f} % of the pixels are 0: they count classes "
        f"from 0, one lower than {_named(table)}, so every class would be read as the previous one and the "
        f"first one would be ignored. {_table_one_lower(table)}{_otherwise(table, present)}",
        is_error=True,
    )


def _maybe_one_lower(table: LabelTable, present: set[int], share: float) -> Suspicion:
    """Finding that a few correct masks can also cause."""
    return Suspicion(
        f"the masks hold {_listed(present)} and no {table.num_classes} ({table.classes[-1]!r}), and 0 "
        f"({100 * share:.0f} % of the pixels) lies inside the images, like classes. Do they count classes "
        f"from 0, one lower than {_named(table)}? {_table_one_lower(table)}. If 0 is no-data and these "
        f"images have no {table.classes[-1]!r}, the masks are correct: 'check: false' silences this warning",
        is_error=False,
    )


def _otherwise(table: LabelTable, present: set[int]) -> str:
    """Remedy if the finding is wrong."""
    beyond = present - {*table.values, *table.ignore_values}
    if not beyond:  # training would accept these masks
        return ". If the masks are correct, 'check: false' skips this check"
    if _is_known(table):
        return ""
    return f". If only {_listed(beyond)} is missing in the table, add it to `classes` or `ignore`"


def _zero_is_between_objects(borders: np.ndarray) -> bool:
    """Whether 0 is drawn as a thin line between all other values."""
    changes, over_zero, zeros = (int(n) for n in borders[:3])
    return changes >= _MIN_BORDERS and over_zero >= _ON_BORDERS * changes and zeros < _THIN * over_zero


def _is_known(table: LabelTable) -> bool:
    return TABLES.get(table.name) == table


def _dataset(table: LabelTable) -> type[Dataset] | None:
    """The known dataset that a table belongs to."""
    return next((dataset for dataset in DATASETS.values() if table in dataset.tables), None)


def _table_one_higher(table: LabelTable) -> str:
    dataset = _dataset(table)
    if dataset is not None and table.name in dataset.twins:
        reads_prepared = table.values[0] == dataset.tables[0].values[0]
        prepare = f" (or write the masks with 'python -m s5.data.prepare {dataset.name}')"
        return f"Set labels: {dataset.twins[table.name]}{prepare if reads_prepared else ''}"
    ignore = [0, *(value + 1 for value in table.ignore_values if value != IGNORE)]
    return f"Set values: {list(range(1, table.num_classes + 1))} and ignore: {ignore}"


def _table_one_lower(table: LabelTable) -> str:
    dataset = _dataset(table)
    for lower, higher in dataset.twins.items() if dataset is not None else ():
        if higher == table.name:
            return f"Set labels: {lower}"
    return f"Set values: {list(range(table.num_classes))} and ignore: [255]"


def _named(table: LabelTable) -> str:
    return f"label table {table.name!r}"


def _listed(values: set[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))
