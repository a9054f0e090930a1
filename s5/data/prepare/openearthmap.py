"""OpenEarthMap: 5000 images of 97 regions at 0.25 to 0.5 m, eight classes and unlabeled pixels.

Xia et al., "OpenEarthMap: A Benchmark Dataset for Global High-Resolution Land Cover Mapping", WACV 2023. The
archive lacks the images that come from xBD, which may not be passed on.
Masks keep their values: 0 no class, 1 to 8 classes (label table ``openearthmap``).
"""

from __future__ import annotations

import argparse
import csv
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from s5.data.folders import find_images
from s5.data.label_table import LabelTable
from s5.data.labels import TABLES
from s5.data.prepare.archived import ArchivedRecipe, listed
from s5.data.prepare.dataset import TEST, TRAIN, VAL
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.recipe import Source
from s5.data.splits import read_list, write_split

logger = logging.getLogger(__name__)

MISSING_NAME = "missing_xbd.txt"
"""File in the folder of the dataset that lists the xBD images that are not there."""

_FILE = re.compile(r"(?:.*/)?(?P<kind>images|labels)/(?P<name>[^/]+\.tiff?)")
_LISTS = {TRAIN: "train.txt", VAL: "val.txt", TEST: "test.txt"}
_XBD_TABLE = "xbd_files.csv"
_WHERE_XBD = "xBD (free, after registration): https://xview2.org/dataset"
_LAYOUT = f"""expected below {{src}}, as folders or as OpenEarthMap.zip:
  train.txt, val.txt, test.txt, xbd_files.csv
  REGION/images/REGION_1.tif ... and REGION/labels/REGION_1.tif ...   (aachen, abancay, ...)
Get it from https://zenodo.org/record/7223446
{_WHERE_XBD}; give its folder with --xbd"""


@dataclass
class _Files:
    """What was found of the dataset, all names in lower case."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenEarthMap(ArchivedRecipe):
    """The images of ``train.txt`` and ``val.txt``; those of ``test.txt`` have no public labels.

    All stay whole.

    Attributes:
        xbd: folder of the xBD images (``*_pre_disaster.png`` anywhere below it), or None.
        require_all: refuse to go on without the xBD images.
    """

    command: ClassVar[str] = "openearthmap"
    help: ClassVar[str] = "OpenEarthMap, by its own lists; images from xBD have to be added"
    title: ClassVar[str] = "OpenEarthMap"
    layout: ClassVar[str] = _LAYOUT
    not_remembered: ClassVar[tuple[str, ...]] = ("partial", "xbd", "require_all")
    may_stay_whole: ClassVar[bool] = True

    size: int = 0
    overlap: int = 0
    xbd: Path | None = None
    require_all: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """What to do about xBD, beside the common ones."""
        super().add_arguments(parser)
        parser.add_argument("--xbd", type=Path, help="folder of the xBD images (PNG), unpacked")
        parser.add_argument(
            "--require-all", action="store_true", help="stop when images from xBD are missing"
        )

    @property
    def table(self) -> LabelTable:
        """The values as shipped."""
        return TABLES["openearthmap"]

    def sources(self) -> list[Source]:
        """The listed images; missing ones from xBD are listed in a file, other missing ones are an error."""
        found = self._find()
        from_xbd = self._from_xbd(found)
        xbd = self._xbd_images()
        sources, missing, xbd_missing = [], [], []
        for group, name in self._names(found):
            image = found.images.get(name) or xbd.get(from_xbd.get(name, ""))
            label = found.labels.get(name)
            if image is not None and (label is not None or group == TEST):
                stem = name.rpartition(".")[0]
                sources.append(Source(f"{group}/{stem}", group, stem, image, label))
            elif image is None and name in from_xbd:
                xbd_missing.append(name)
            else:  # of test images there are no labels
                missing.append(f"{'labels' if image else 'images'} {name}")
                if image is not None:
                    problem = f"{image}: its label is missing"
                    sources.append(Source(f"{group}/{name}", group, name, image, problem=problem))
        self._report_xbd(xbd_missing, from_xbd)
        if missing:
            self.require([f"{len(missing)} files of train.txt, val.txt and test.txt: {listed(missing, 10)}"])
        return sources

    def usage(self) -> str:
        """The table of the masks."""
        return "labels: openearthmap (9 ids; 0, no class, counts as background)"

    def _find(self) -> _Files:
        found = _Files()
        for place, path in self.shipped():
            match = _FILE.fullmatch(place)
            if match:
                (found.images if match["kind"] == "images" else found.labels).setdefault(match["name"], path)
            else:
                found.others.setdefault(place.rpartition("/")[2], path)
        return found

    def _names(self, found: _Files) -> list[tuple[str, str]]:
        """Part and name of every listed image."""
        lacking = [name for group, name in _LISTS.items() if name not in found.others and group != TEST]
        if lacking:
            raise PrepareError(
                f"OpenEarthMap below {self.src}: no {' and '.join(lacking)}.\n{self._expected()}"
            )
        return [
            (group, name.lower())
            for group, file in _LISTS.items()
            if file in found.others
            for name in self._text(found.others[file]).split()
        ]

    def _from_xbd(self, found: _Files) -> dict[str, str]:
        """Name of the xBD image of each image that comes from there."""
        if _XBD_TABLE not in found.others:
            return {}
        rows = csv.reader(self._text(found.others[_XBD_TABLE]).splitlines())
        return {row[1].strip().lower(): row[0].strip().lower() for row in rows if len(row) == 2}

    def _xbd_images(self) -> dict[str, Path]:
        """Images of xBD by their names in lower case."""
        if self.xbd is None:
            return {}
        if not self.xbd.is_dir():
            raise PrepareError(f"--xbd {self.xbd}: no such folder")
        found = {path.name.lower(): path for path in find_images(self.xbd)}
        if not any(name.endswith("_pre_disaster.png") for name in found):
            geotiffs = sum(name.endswith(("_pre_disaster.tif", "_pre_disaster.tiff")) for name in found)
            what = (
                f"{geotiffs} GeoTIFFs, but no *_pre_disaster.png below it: this is the GeoTIFF edition of "
                "xBD, which OpenEarthMap's labels do not fit. Get the datasets of the challenge (train, "
                "tier3, test, hold), whose images are PNG"
                if geotiffs
                else "no *_pre_disaster.png below it; unpack the archives of xBD"
            )
            raise PrepareError(f"--xbd {self.xbd}: {what}. {_WHERE_XBD}")
        return found

    def _text(self, path: Path) -> str:
        with self.local(path) as file:
            return read_list(file).decode("utf-8-sig", "surrogateescape")

    def _report_xbd(self, missing: list[str], from_xbd: dict[str, str]) -> None:
        """Write the list of missing xBD images, or remove an old one."""
        path = self.out / self.folder / MISSING_NAME
        if not missing:
            path.unlink(missing_ok=True)
            return
        write_split(path, [f"{from_xbd[name]} -> {_region(name)}/images/{name}" for name in sorted(missing)])
        text = (
            f"{len(missing)} images of OpenEarthMap come from xBD, which may not be passed on, and are not "
            f"here: {listed(sorted(missing), 5)}. All are listed in {path}. {_WHERE_XBD}; unpack it and pass "
            "--xbd DIR"
        )
        if self.require_all:
            raise PrepareError(text)
        logger.warning("%s. Going on without them", text)


def _region(name: str) -> str:
    return name.rpartition("_")[0]
