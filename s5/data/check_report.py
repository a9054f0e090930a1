"""Report of the check of a split."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s5.data.conventions import explain_convention
from s5.data.label_table import LabelTable
from s5.data.mask_survey import MaskSurvey
from s5.errors import printable


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
