"""ISPRS Vaihingen and Potsdam: the official tiles, colour-coded labels with or without eroded boundaries.

ISPRS 2D Semantic Labeling Contest; Rottensteiner et al., "The ISPRS benchmark on urban object classification
and 3D building reconstruction", ISPRS Annals I-3, 2012.

Masks are written as 0 impervious surface, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter and 255
boundary, whatever is trained on: the label table ``potsdam`` ignores clutter, ``potsdam_6`` counts it.
"""

from __future__ import annotations

import argparse
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from s5.data.image_io import read_image
from s5.data.label_table import LabelTable
from s5.data.labels import TABLES
from s5.data.prepare.archived import ArchivedRecipe, listed
from s5.data.prepare.dataset import TRAIN, VAL
from s5.data.prepare.patches import Decoded
from s5.data.prepare.recipe import Source

FULL, ERODED = "full", "eroded"
_WHERE = """Get it from the ISPRS (free, after a request form), benchmark "2D Semantic Labeling":
https://www.isprs.org/resources/datasets/benchmarks/UrbanSemLab/default.aspx"""
_VAIHINGEN_LAYOUT = f"""expected below {{src}}, as folders, as archives, or all in one Vaihingen.zip:
  ISPRS_semantic_labeling_Vaihingen(.zip)                               top/top_mosaic_09cm_area1.tif ...
  ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE(.zip)         top_mosaic_09cm_area1.tif ...
  ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE(.zip)  ..._area1_noBoundary.tif ...
{_WHERE}"""
_POTSDAM_LAYOUT = f"""expected below {{src}}, as folders, as archives, or all in one Potsdam.zip:
  2_Ortho_RGB(.zip) or 3_Ortho_IRRG(.zip)  top_potsdam_2_10_RGB.tif ...
  5_Labels_all(.zip)                       top_potsdam_2_10_label.tif ...
  5_Labels_all_noBoundary(.zip)            top_potsdam_2_10_label_noBoundary.tif ...
{_WHERE}"""

_VAIHINGEN_FILE = re.compile(r"top_mosaic_09cm_area(?P<tile>\d+)(?:_no_?boundary)?\.tiff?")
# Images and labels of Vaihingen have the same names; the folder tells which they are.
_VAIHINGEN_LABELS = re.compile(r"gts_|ground_truth|(^|/)(gts?|labels?|masks?)(/|_|$)")
_POTSDAM_FILE = re.compile(
    r"top_potsdam_0?(?P<row>\d+)_0?(?P<column>\d+)_(?P<kind>rgb|irrg|label)(?:_no_?boundary)?\.tiff?"
)
_ERODED = re.compile(r"eroded|no_?boundary")

# Labels that are stored with colours beside the code. In 4_12 every pixel is a little off, from lossy coding;
# in 6_7 most cars are (252, 255, 0). The colours of the code are corners of the colour cube, so that rounding
# each channel restores them.
_INEXACT = ("4_12", "6_7")


@dataclass(frozen=True)
class Isprs(ArchivedRecipe):
    """The tiles for participants train, those whose labels were held back validate, as scores are published.

    Attributes:
        boundary: labels for training with the pixels at object boundaries (``full``) or without (``eroded``).
        val_boundary: the same for validation; scores are published on eroded labels.
        bands: ``rgb``, or ``irrg``: infrared, red and green as the three channels.
    """

    train_tiles: ClassVar[tuple[str, ...]]
    val_tiles: ClassVar[tuple[str, ...]]
    band_choices: ClassVar[tuple[str, ...]]
    sources_of: ClassVar[dict[str, str]]  # archive of each kind of file

    boundary: str = FULL
    val_boundary: str = ERODED
    bands: str = ""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """The variants, beside the common ones."""
        super().add_arguments(parser)
        choices = (FULL, ERODED)
        parser.add_argument(
            "--boundary",
            choices=choices,
            default=FULL,
            help="labels for training: all pixels, or those at object boundaries ignored (default: full)",
        )
        parser.add_argument(
            "--val-boundary",
            choices=choices,
            default=ERODED,
            help="labels for validation; published scores are on eroded ones (default: eroded)",
        )
        parser.add_argument(
            "--bands",
            choices=cls.band_choices,
            default=cls.band_choices[0],
            help=f"channels of the images (default: {cls.band_choices[0]})",
        )

    @property
    def table(self) -> LabelTable:
        """The table with clutter, which reads all that is written."""
        return TABLES[f"{self.command}_6"]

    @abstractmethod
    def kind_of(self, place: str) -> tuple[str, str] | None:
        """Kind of a file (``full``, ``eroded`` or its bands) and its tile, from its place in lower case."""

    def sources(self) -> list[Source]:
        """The official tiles, each with the labels asked for."""
        found: dict[tuple[str, str], Path] = {}
        for place, path in self.shipped():
            kind = self.kind_of(place.partition("/")[2])  # the source folder's own name says nothing
            if kind is not None:
                found.setdefault(kind, path)
        parts = ((TRAIN, self.train_tiles, self.boundary), (VAL, self.val_tiles, self.val_boundary))
        self.require(self._lacking(found, parts))
        return [
            Source(f"{group}/{tile}", group, self._stem(tile), found[self.bands, tile], found[labels, tile])
            for group, tiles, labels in parts
            for tile in tiles
            if (self.bands, tile) in found and (labels, tile) in found
        ]

    def decode_mask(self, path: Path) -> Decoded:
        """Class ids from the colours."""
        with self.local(path) as file:
            rgb = read_image(file)
        rgb, note = self.exact_colors(rgb, path)
        return Decoded(self.table.from_colors(rgb, path), note)

    def exact_colors(self, rgb: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
        """The colours of a label file as the code has them, and a note where that changed any."""
        return rgb, ""

    def usage(self) -> str:
        """Both tables that read the masks."""
        return (
            f"labels: {self.command} (5 classes, clutter ignored, as scores are published) "
            f"or {self.command}_6 (clutter counted); both read these masks"
        )

    def _lacking(
        self, found: dict[tuple[str, str], Path], parts: Sequence[tuple[str, tuple[str, ...], str]]
    ) -> list[str]:
        """One line per kind of file that tiles lack."""
        wanted = [
            (kind, tile) for _, tiles, labels in parts for tile in tiles for kind in (self.bands, labels)
        ]
        problems = []
        for kind in dict.fromkeys(kind for kind, _ in wanted):
            tiles = [tile for k, tile in wanted if k == kind]
            lacking = [tile for tile in tiles if (kind, tile) not in found]
            if lacking:
                what = f"{kind} labels" if kind in (FULL, ERODED) else f"{kind.upper()} images"
                place = self.sources_of[kind]
                problems.append(
                    f"{what}: {len(lacking)} of {len(tiles)} tiles, in {place}: {listed(lacking)}"
                )
                if kind == ERODED:
                    problems.append(
                        "  (--val-boundary full does without; scores then differ from published ones)"
                    )
        return problems

    def _stem(self, tile: str) -> str:
        return tile


@dataclass(frozen=True)
class Vaihingen(Isprs):
    """33 areas of about 2000 x 2500 pixels at 9 cm; infrared, red, green."""

    command: ClassVar[str] = "vaihingen"
    help: ClassVar[str] = "ISPRS Vaihingen, 16 areas for training and 17 for validation"
    title: ClassVar[str] = "ISPRS Vaihingen"
    layout: ClassVar[str] = _VAIHINGEN_LAYOUT
    inner_archives: ClassVar[str] = r"isprs_semantic_labeling_vaihingen(_ground_truth.*)?\.zip"
    band_choices: ClassVar[tuple[str, ...]] = ("irrg",)
    train_tiles: ClassVar[tuple[str, ...]] = tuple("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split())
    val_tiles: ClassVar[tuple[str, ...]] = tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split())
    sources_of: ClassVar[dict[str, str]] = {
        "irrg": "ISPRS_semantic_labeling_Vaihingen.zip",
        FULL: "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip",
        ERODED: "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
    }

    def kind_of(self, place: str) -> tuple[str, str] | None:
        """By the folder, as images and labels have the same names."""
        folder, _, name = place.rpartition("/")
        match = _VAIHINGEN_FILE.fullmatch(name)
        if match is None:
            return None
        if _ERODED.search(place):
            return ERODED, match["tile"]
        return FULL if _VAIHINGEN_LABELS.search(folder) else "irrg", match["tile"]

    def _stem(self, tile: str) -> str:
        return f"area{tile}"


@dataclass(frozen=True)
class Potsdam(Isprs):
    """38 tiles of 6000 x 6000 pixels at 5 cm; RGB or infrared, red, green."""

    command: ClassVar[str] = "potsdam"
    help: ClassVar[str] = "ISPRS Potsdam, 24 tiles for training and 14 for validation"
    title: ClassVar[str] = "ISPRS Potsdam"
    layout: ClassVar[str] = _POTSDAM_LAYOUT
    inner_archives: ClassVar[str] = r"(2_ortho_rgb|3_ortho_irrg|5_labels.*)\.zip"
    band_choices: ClassVar[tuple[str, ...]] = ("rgb", "irrg")
    train_tiles: ClassVar[tuple[str, ...]] = tuple(
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12".split()
    )
    val_tiles: ClassVar[tuple[str, ...]] = tuple(
        "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()
    )
    sources_of: ClassVar[dict[str, str]] = {
        "rgb": "2_Ortho_RGB.zip",
        "irrg": "3_Ortho_IRRG.zip",
        FULL: "5_Labels_all.zip",
        ERODED: "5_Labels_all_noBoundary.zip",
    }

    def kind_of(self, place: str) -> tuple[str, str] | None:
        """By the name alone."""
        match = _POTSDAM_FILE.fullmatch(place.rpartition("/")[2])
        if match is None:
            return None
        labels = ERODED if _ERODED.search(place) else FULL
        return labels if match["kind"] == "label" else match["kind"], f"{match['row']}_{match['column']}"

    def exact_colors(self, rgb: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
        """Round the colours of the two tiles that are known to be inexact."""
        match = _POTSDAM_FILE.fullmatch(path.name.lower())
        if match is None or f"{match['row']}_{match['column']}" not in _INEXACT:
            return rgb, ""
        rounded = np.where(rgb > 127, np.uint8(255), np.uint8(0))
        changed = int((rounded != rgb).any(axis=2).sum())
        return rounded, f"{changed} pixels of {path.name} had inexact colours, which were rounded"
