"""LoveDA: 1024 x 1024 images of three Chinese cities at 30 cm, seven classes, urban and rural.

Wang et al., "LoveDA: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic Segmentation", NeurIPS
Datasets and Benchmarks 2021. Masks keep their values: 0 no-data, 1 to 7 classes (label table ``loveda``).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s5.data.label_table import LabelTable
from s5.data.labels import TABLES
from s5.data.prepare.archived import ArchivedRecipe
from s5.data.prepare.dataset import TEST, TRAIN, VAL
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.recipe import Source

logger = logging.getLogger(__name__)

_FILE = re.compile(
    r"(?:.*/)?(?P<group>train|val|test)(?:\.zip)?/(?:.*/)?(?P<scene>urban|rural)(?:\.zip)?/"
    r"(?P<kind>images|masks)_png/(?P<stem>\d+)\.png"
)
COUNTS = {TRAIN: 2522, VAL: 1669, TEST: 1796}
"""Number of images of each part."""

_LAYOUT = """expected below {src}, as folders or as archives:
  Train(.zip)/{{Urban,Rural}}/images_png/*.png and masks_png/*.png     2522 images
  Val(.zip)/{{Urban,Rural}}/images_png/*.png and masks_png/*.png       1669 images
  Test(.zip)/{{Urban,Rural}}/images_png/*.png                          1796 images, only for submissions
Get it from https://zenodo.org/record/5706578"""


@dataclass(frozen=True)
class LoveDA(ArchivedRecipe):
    """Train and Val with their masks; Test, whose masks are with the evaluation server, whole."""

    command: ClassVar[str] = "loveda"
    help: ClassVar[str] = "LoveDA, 2522 images for training, 1669 for validation, 1796 for submissions"
    title: ClassVar[str] = "LoveDA"
    layout: ClassVar[str] = _LAYOUT
    inner_archives: ClassVar[str] = r"(train|val|test|urban|rural)\.zip"

    @property
    def table(self) -> LabelTable:
        """The values as shipped."""
        return TABLES["loveda"]

    def sources(self) -> list[Source]:
        """All images that have a mask, and the test images."""
        found = self._find()
        self.require(self._lacking(found))
        sources = [
            self._source(key, files) for key, files in sorted(found.items()) if self._usable(key[0], files)
        ]
        if not any(source.group == TRAIN for source in sources):
            raise PrepareError(f"no LoveDA training images with masks below {self.src}.\n{self._expected()}")
        if not any(source.group == TEST for source in sources):
            logger.warning("no LoveDA test images below %s: no list for submissions is written", self.src)
        return sources

    def usage(self) -> str:
        """The table of the masks."""
        return "labels: loveda (values 1 to 7 are the classes, 0 is no-data and ignored)"

    def _find(self) -> dict[tuple[str, str, int], dict[str, Path]]:
        """Image and mask of each (part, scene, number)."""
        found: dict[tuple[str, str, int], dict[str, Path]] = {}
        for place, path in self.shipped():
            match = _FILE.fullmatch(place)
            if match:
                key = match["group"], match["scene"].capitalize(), int(match["stem"])
                found.setdefault(key, {}).setdefault(match["kind"], path)
        return found

    def _usable(self, group: str, files: dict[str, Path]) -> bool:
        return "images" in files and (group == TEST or "masks" in files)

    def _source(self, key: tuple[str, str, int], files: dict[str, Path]) -> Source:
        group, scene, number = key
        mask = None if group == TEST else files["masks"]
        return Source(f"{group}/{scene}/{number:04d}", group, f"{scene}/{number}", files["images"], mask)

    def _lacking(self, found: dict[tuple[str, str, int], dict[str, Path]]) -> list[str]:
        problems = []
        for group, count in COUNTS.items():
            files = [files for key, files in found.items() if key[0] == group]
            usable = sum(self._usable(group, f) for f in files)
            if usable < count and not (group == TEST and usable == 0):
                images, masks = (sum(kind in f for f in files) for kind in ("images", "masks"))
                got = f"{images} images" if group == TEST else f"{images} images, {masks} masks"
                problems.append(f"{group.capitalize()}: {got} of {count}, {usable} usable")
        return problems
