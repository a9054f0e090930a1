"""ISPRS Vaihingen and Potsdam: the official tiles, colour-coded labels with or without eroded boundaries.

Masks are written as 0 impervious surface, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter and 255
boundary, regardless of the classes trained on. Each dataset has four label tables with the same colours:
`potsdam` (5 classes, clutter is ignored, as scores are published) and `potsdam_6` read these masks;
`potsdam_mmseg` and `potsdam_mmseg_6` read masks in the mmsegmentation convention, which are one higher
(boundary 0, classes 1 to 5, clutter 6).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from s5.data.datasets.base import TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source
from s5.data.image_io import read_image
from s5.data.label_table import RGB, LabelTable, build_table
from s5.errors import shorten

FULL, ERODED = "full", "eroded"
_URL = "https://www.isprs.org/resources/datasets/benchmarks/UrbanSemLab/default.aspx"
_WHERE = f"""Get it from the ISPRS (free, after a request form), benchmark "2D Semantic Labeling":
{_URL}"""

# Colours of the contest; black marks the eroded boundary between objects.
_CLASSES: tuple[tuple[str, RGB], ...] = (
    ("impervious_surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low_vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
)
_CLUTTER: tuple[str, RGB] = ("clutter", (255, 0, 0))
_BOUNDARY: RGB = (0, 0, 0)

_VAIHINGEN_FILE = re.compile(r"top_mosaic_09cm_area(?P<tile>\d+)(?:_no_?boundary)?\.tiff?")
# Images and labels of Vaihingen have the same names; only the folder distinguishes them.
_VAIHINGEN_LABELS = re.compile(r"gts_|ground_truth|(^|/)(gts?|labels?|masks?)(/|_|$)")
_POTSDAM_FILE = re.compile(
    r"top_potsdam_0?(?P<row>\d+)_0?(?P<column>\d+)_(?P<kind>rgb|irrg|label)(?:_no_?boundary)?\.tiff?"
)
_ERODED = re.compile(r"eroded|no_?boundary")

_Found = dict[tuple[str, str], Path]  # by kind and tile

# Labels whose colours differ from the colour code. In 4_12 every pixel is slightly off, from lossy coding;
# in 6_7 most cars are (252, 255, 0). The colours of the code are corners of the colour cube, so that rounding
# each channel restores them.
_INEXACT = ("4_12", "6_7")


def _tables(name: str) -> tuple[LabelTable, ...]:
    five, six = _CLASSES, (*_CLASSES, _CLUTTER)
    not_counted = (_CLUTTER[1], _BOUNDARY)
    from_1_to_5, from_1_to_6 = tuple(range(1, 6)), tuple(range(1, 7))
    return (
        build_table(name, *five, ignore_values=(5, 255), ignore_colors=not_counted),
        build_table(f"{name}_6", *six, ignore_colors=(_BOUNDARY,)),
        build_table(
            f"{name}_mmseg", *five, values=from_1_to_5, ignore_values=(0, 6), ignore_colors=not_counted
        ),
        build_table(
            f"{name}_mmseg_6", *six, values=from_1_to_6, ignore_values=(0,), ignore_colors=(_BOUNDARY,)
        ),
    )


def _options(*bands: str) -> dict[str, dict]:
    labels = "labels for training: all pixels, or those at object boundaries ignored"
    val_labels = "labels for validation; published scores are on eroded ones"
    choices = {
        "boundary": ((FULL, ERODED), FULL, labels),
        "val_boundary": ((FULL, ERODED), ERODED, val_labels),
        "bands": (bands, bands[0], "channels of the images"),
    }
    return {
        name: {"choices": values, "default": default, "help": f"{text} (default: {default})"}
        for name, (values, default, text) in choices.items()
    }


def _usage(name: str) -> str:
    return (
        f"labels: {name} (5 classes, clutter ignored, as scores are published) "
        f"or {name}_6 (clutter counted); both read these masks"
    )


class _Contest:
    """What the two datasets share.

    Attributes:
        tiles: Names of the tiles of each part.
        packed_in: Archive of each kind of file, for messages.
        stem: Beginning of the names of patches.
    """

    url = _URL
    licence = "research only; name the source, do not redistribute the data"
    citation = (
        "ISPRS 2D Semantic Labeling Contest; Rottensteiner et al., The ISPRS benchmark on urban object "
        "classification and 3D building reconstruction, ISPRS Annals I-3, 2012"
    )
    zero = "boundary"
    common_class = True
    tiles: ClassVar[Mapping[str, tuple[str, ...]]]
    packed_in: ClassVar[Mapping[str, str]]
    stem = ""

    @staticmethod
    def kind_of(relative: str) -> tuple[str, str] | None:
        """Kind and tile of a file, from its path in lower case; None for other files."""
        raise NotImplementedError

    @classmethod
    def find(cls, shipped: Shipped, boundary: str, val_boundary: str, bands: str) -> list[Source]:
        """The official tiles of both parts, with the requested bands and labels."""
        found: _Found = {}
        for relative, path in shipped.files():
            # The name of the source folder itself is arbitrary.
            if (kind := cls.kind_of(relative.partition("/")[2])) is not None:
                found.setdefault(kind, path)
        labels_of = {TRAIN: boundary, VAL: val_boundary}
        tiles = [(part, tile, labels) for part, labels in labels_of.items() for tile in cls.tiles[part]]
        wanted = [(kind, tile) for _, tile, labels in tiles for kind in (bands, labels)]
        shipped.require(_lacking(found, wanted, cls.packed_in))
        return [
            Source(f"{part}/{tile}", part, f"{cls.stem}{tile}", found[bands, tile], found[labels, tile])
            for part, tile, labels in tiles
            if (bands, tile) in found and (labels, tile) in found
        ]


def _lacking(found: _Found, wanted: Sequence[tuple[str, str]], packed_in: Mapping[str, str]) -> list[str]:
    """One line per kind of file that is missing for some tiles."""
    problems = []
    for kind in dict.fromkeys(kind for kind, _ in wanted):
        tiles = [tile for k, tile in wanted if k == kind]
        lacking = [tile for tile in tiles if (kind, tile) not in found]
        if lacking:
            what = f"{kind} labels" if kind in (FULL, ERODED) else f"{kind.upper()} images"
            count = f"{len(lacking)} of {len(tiles)} tiles"
            problems.append(f"{what}: {count}, in {packed_in[kind]}: {shorten(lacking, 40)}")
            if kind == ERODED:
                problems.append(
                    "  (--val-boundary full does without; scores then differ from published ones)"
                )
    return problems


class Vaihingen(_Contest, Dataset):
    """33 areas of about 2000 x 2500 pixels at 9 cm, infrared, red and green; masks in colours.

    The areas given to participants train, those whose labels were held back validate.
    """

    name = "vaihingen"
    title = "ISPRS Vaihingen"
    summary = "ISPRS Vaihingen, 16 areas for training and 17 for validation"
    layout = f"""expected below {{src}}, as folders, as archives, or all in one Vaihingen.zip:
  ISPRS_semantic_labeling_Vaihingen(.zip)                               top/top_mosaic_09cm_area1.tif ...
  ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE(.zip)         top_mosaic_09cm_area1.tif ...
  ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE(.zip)  ..._area1_noBoundary.tif ...
{_WHERE}"""
    tables = _tables("vaihingen")
    twins = {"vaihingen": "vaihingen_mmseg", "vaihingen_6": "vaihingen_mmseg_6"}
    counts = {TRAIN: 16, VAL: 17}
    tiles = {
        TRAIN: tuple("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split()),
        VAL: tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split()),
    }
    inner_archives = r"isprs_semantic_labeling_vaihingen(_ground_truth.*)?\.zip"
    options = _options("irrg")
    usage = _usage("vaihingen")
    packed_in = {
        "irrg": "ISPRS_semantic_labeling_Vaihingen.zip",
        FULL: "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip",
        ERODED: "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
    }
    stem = "area"

    @staticmethod
    def kind_of(relative: str) -> tuple[str, str] | None:
        """Kind (`full`, `eroded` or `irrg`) and area of a file, from its path in lower case."""
        folder, _, name = relative.rpartition("/")
        match = _VAIHINGEN_FILE.fullmatch(name)
        if match is None:
            return None
        if _ERODED.search(relative):
            return ERODED, match["tile"]
        return FULL if _VAIHINGEN_LABELS.search(folder) else "irrg", match["tile"]

    @classmethod
    def read_mask(cls, file: Path, path: Path) -> tuple[np.ndarray, str]:
        """Class ids from the colours."""
        return cls.tables[1].from_colors(read_image(file), path), ""


class Potsdam(_Contest, Dataset):
    """38 tiles of 6000 x 6000 pixels at 5 cm, RGB or infrared, red and green; masks in colours.

    The tiles given to participants train, those whose labels were held back validate.
    """

    name = "potsdam"
    title = "ISPRS Potsdam"
    summary = "ISPRS Potsdam, 24 tiles for training and 14 for validation"
    layout = f"""expected below {{src}}, as folders, as archives, or all in one Potsdam.zip:
  2_Ortho_RGB(.zip) or 3_Ortho_IRRG(.zip)  top_potsdam_2_10_RGB.tif ...
  5_Labels_all(.zip)                       top_potsdam_2_10_label.tif ...
  5_Labels_all_noBoundary(.zip)            top_potsdam_2_10_label_noBoundary.tif ...
{_WHERE}"""
    tables = _tables("potsdam")
    twins = {"potsdam": "potsdam_mmseg", "potsdam_6": "potsdam_mmseg_6"}
    counts = {TRAIN: 24, VAL: 14}
    tiles = {
        TRAIN: tuple(
            "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
            "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12".split()
        ),
        VAL: tuple("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()),
    }
    inner_archives = r"(2_ortho_rgb|3_ortho_irrg|5_labels.*)\.zip"
    options = _options("rgb", "irrg")
    usage = _usage("potsdam")
    packed_in = {
        "rgb": "2_Ortho_RGB.zip",
        "irrg": "3_Ortho_IRRG.zip",
        FULL: "5_Labels_all.zip",
        ERODED: "5_Labels_all_noBoundary.zip",
    }

    @staticmethod
    def kind_of(relative: str) -> tuple[str, str] | None:
        """Kind (`full`, `eroded`, `rgb` or `irrg`) and tile of a file, from its path in lower case."""
        match = _POTSDAM_FILE.fullmatch(relative.rpartition("/")[2])
        if match is None:
            return None
        labels = ERODED if _ERODED.search(relative) else FULL
        return labels if match["kind"] == "label" else match["kind"], f"{match['row']}_{match['column']}"

    @classmethod
    def read_mask(cls, file: Path, path: Path) -> tuple[np.ndarray, str]:
        """Class ids from the colours, which are rounded in the two tiles that are known to be inexact."""
        rgb, note = read_image(file), ""
        match = _POTSDAM_FILE.fullmatch(path.name.lower())
        if match and f"{match['row']}_{match['column']}" in _INEXACT:
            rounded = np.where(rgb > 127, np.uint8(255), np.uint8(0))
            changed = int((rounded != rgb).any(axis=2).sum())
            rgb, note = rounded, f"{changed} pixels of {path.name} had inexact colours, which were rounded"
        return cls.tables[1].from_colors(rgb, path), note
