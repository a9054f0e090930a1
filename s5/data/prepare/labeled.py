"""Folders of images and masks of one's own -> patches, and lists for training and validation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from s5.data.errors import ImageError
from s5.data.folders import hold_out, pair_folders
from s5.data.image_formats import is_tiff
from s5.data.image_io import image_size
from s5.data.label_table import LabelTable
from s5.data.labels import HELP, parse_table
from s5.data.mask_survey import refuse_together
from s5.data.masks import open_mask
from s5.data.prepare.dataset import TRAIN, VAL, DatasetRecipe
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.patches import ReadableMask, Window, unique_stems
from s5.data.prepare.recipe import Source
from s5.data.splits import Sample, Split

_PIECE_ROWS = 4096  # of a large image, cut at a time


@dataclass(frozen=True)
class Labeled(DatasetRecipe):
    """Images and masks of the same names, of any size; GeoTIFFs are cut by windows.

    Whole images are held out for validation, chosen by their names; of a single image, its lower part.

    Attributes:
        masks: folder of the masks; ``src`` is that of the images.
        labels: label table, as on the command line.
        val_share: share held out for validation.
    """

    command: ClassVar[str] = "labeled"
    help: ClassVar[str] = "your own folders of images and masks -> NAME, with lists for training"
    default_val_size: ClassVar[int] = 2048

    masks: Path = Path()
    labels: str = ""
    val_share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is read."""
        super().__post_init__()
        if not 0 < self.val_share < 1:
            raise PrepareError(f"--val-share lies between 0 and 1, got {self.val_share}")
        _ = self.table

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Two folders instead of one, the classes, and the share for validation."""
        super().add_arguments(parser)
        parser.add_argument(
            "--masks", type=Path, required=True, help="folder of the masks, of the same names"
        )
        parser.add_argument("--labels", required=True, metavar="TABLE", help=HELP)
        parser.add_argument(
            "--val-share", type=float, default=0.2, help="share held out for validation (default: 0.2)"
        )

    @classmethod
    def add_source(cls, parser: argparse.ArgumentParser) -> None:
        """The folder of the images."""
        parser.add_argument("--images", dest="src", type=Path, required=True, help="folder of the images")

    @classmethod
    def add_name(cls, parser: argparse.ArgumentParser) -> None:
        """The name has no default."""
        parser.add_argument("--name", required=True, help="name of the dataset: its folder is called so")

    @cached_property
    def table(self) -> LabelTable:
        """The table that the masks are written for."""
        return parse_table(self.labels, default_name=self.name)

    def parameters(self) -> dict[str, Any]:
        """The table by its content, so that a changed YAML file counts."""
        return {**super().parameters(), "labels": self.table.as_mapping()}

    def sources(self) -> list[Source]:
        """Every pair, for training or held out; large images in several pieces."""
        src = self.src.absolute()
        pairs = pair_folders(src, self.masks.absolute(), src)
        stems = dict(zip(names := [s.name for s in pairs], unique_stems(names), strict=True))
        refused = refuse_together([s.mask for s in pairs if s.mask is not None], self.table)
        parts = self._of_one_image(pairs) if len(pairs) == 1 else self._of_images(pairs)
        return [
            Source(
                f"{group}/{sample.name}{mark}",
                group,
                stems[sample.name],
                sample.image,
                sample.mask,
                area,
                refused.get(str(sample.mask), ""),
            )
            for group, sample, whole in parts
            for mark, area in self._pieces(sample, whole)
        ]

    def mask(self, path: Path) -> AbstractContextManager[ReadableMask]:
        """Open a mask of any kind."""
        return open_mask(path, self.table)

    def usage(self) -> str:
        """The table of the masks."""
        return f"labels: {self.labels}"

    def _of_images(self, pairs: Split) -> Iterator[tuple[str, Sample, Window | None]]:
        """Part and sample of each pair; all of the image."""
        for group, split in zip((TRAIN, VAL), hold_out(pairs, self.val_share), strict=True):
            yield from ((group, sample, None) for sample in split)

    def _of_one_image(self, pairs: Split) -> Iterator[tuple[str, Sample, Window | None]]:
        """The upper part of a single image for training, the lower one for validation."""
        sample = pairs.sample(0)
        height, width = image_size(sample.image)
        line = height - round(height * self.val_share)
        if min(line, height - line) < 16:
            raise PrepareError(
                f"{sample.image}: one image of {height} rows is too small to be divided; add more"
            )
        yield TRAIN, sample, Window(0, 0, line, width)
        yield VAL, sample, Window(line, 0, height - line, width)

    def _pieces(self, sample: Sample, area: Window | None) -> Iterator[tuple[str, Window | None]]:
        """Areas to cut one by one, so that large TIFFs are cut in parallel and continued where it stopped."""
        try:
            whole = area or Window(0, 0, *image_size(sample.image))
        except ImageError:  # cutting it says so, and the others go on
            yield "", None
            return
        if not is_tiff(sample.image):  # each piece would decode all of it
            yield "", whole
            return
        rows = max(_PIECE_ROWS // self.size, 1) * self.size
        bottom = whole.top + whole.height
        tops = range(whole.top, max(bottom - rows // 2, whole.top + 1), rows)
        for top, end in zip(tops, (*tops[1:], bottom), strict=True):
            yield f"#{top}" if len(tops) > 1 else "", whole._replace(top=top, height=end - top)
