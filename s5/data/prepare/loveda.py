"""LoveDA: 1024 x 1024 images of three Chinese cities at 30 cm, seven classes, urban and rural.

Wang et al., "LoveDA: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic Segmentation", NeurIPS
Datasets and Benchmarks 2021. Masks keep their values: 0 no-data, 1 to 7 classes (label table ``loveda``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s5.data.label_table import LabelTable
from s5.data.labels import TABLES
from s5.data.prepare.archived import ArchivedRecipe, listed
from s5.data.prepare.dataset import TEST, TRAIN, VAL
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.recipe import Source

logger = logging.getLogger(__name__)

_FILE = re.compile(
    r"(?:.*/)?(?P<group>train|val|test)(?:\.zip)?/(?:.*/)?(?P<scene>urban|rural)(?:\.zip)?/"
    r"(?P<kind>images|masks)_png/(?P<stem>\d+)\.png"
)
COUNTS = {TRAIN: 2522, VAL: 1669, TEST: 1796}
"""Number of images of each part, which are numbered on: 0 to 2521, 2522 to 4190, 4191 to 5986."""
_SHOWN = 10  # names in a message

_Key = tuple[str, str, int]  # part, scene, number
_Files = dict[str, Path]  # by kind

_LAYOUT = """expected below {src}, as folders or as archives:
  Train(.zip)/{{Urban,Rural}}/images_png/*.png and masks_png/*.png     2522 images
  Val(.zip)/{{Urban,Rural}}/images_png/*.png and masks_png/*.png       1669 images
  Test(.zip)/{{Urban,Rural}}/images_png/*.png                          1796 images, only for submissions
Get it from https://zenodo.org/record/5706578"""


@dataclass(frozen=True)
class LoveDA(ArchivedRecipe):
    """Train and Val with their masks; Test, whose masks are with the evaluation server. All stay whole.

    ``splits/trainval.txt`` lists Train and Val together, for a run that is scored on the server alone.
    """

    command: ClassVar[str] = "loveda"
    help: ClassVar[str] = "LoveDA, 2522 images for training, 1669 for validation, 1796 for submissions"
    title: ClassVar[str] = "LoveDA"
    layout: ClassVar[str] = _LAYOUT
    inner_archives: ClassVar[str] = r"(train|val|test|urban|rural)\.zip"
    may_stay_whole: ClassVar[bool] = True

    size: int = 0
    overlap: int = 0

    @property
    def table(self) -> LabelTable:
        """The values as shipped."""
        return TABLES["loveda"]

    def sources(self) -> list[Source]:
        """All images that have a mask, and the test images; what lacks its partner, to be listed."""
        found = self._find()
        self.require(self._lacking(found))
        sources = [self._source(key, files) for key, files in sorted(found.items())]
        if not any(source.group == TRAIN and not source.problem for source in sources):
            raise PrepareError(f"no LoveDA training images with masks below {self.src}.\n{self._expected()}")
        if not any(source.group == TEST for source in sources):
            logger.warning("no LoveDA test images below %s: no list for submissions is written", self.src)
        return sources

    def joint_lists(self) -> Mapping[str, Sequence[str]]:
        """Train and Val together."""
        return {f"{self.folder}/splits/trainval.txt": (TRAIN, VAL)}

    def usage(self) -> str:
        """The table of the masks."""
        return "labels: loveda (values 1 to 7 are the classes, 0 is no-data and ignored)"

    def _find(self) -> dict[_Key, _Files]:
        """Image and mask of each (part, scene, number)."""
        found: dict[_Key, _Files] = {}
        for place, path in self.shipped():
            match = _FILE.fullmatch(place)
            if match:
                key = match["group"], match["scene"].capitalize(), int(match["stem"])
                found.setdefault(key, {}).setdefault(match["kind"], path)
        return found

    def _source(self, key: _Key, files: _Files) -> Source:
        group, scene, number = key
        image, mask = files.get("images"), None if group == TEST else files.get("masks")
        lacking = _lacks(group, files)
        return Source(
            f"{group}/{scene}/{number:04d}",
            group,
            f"{scene}/{number}",
            image or files["masks"],
            mask,
            problem=f"{image or files['masks']}: its {lacking} is missing" if lacking else "",
        )

    def _lacking(self, found: Mapping[_Key, _Files]) -> list[str]:
        problems, first = [], 0
        for group, count in COUNTS.items():
            part = {key: files for key, files in sorted(found.items()) if key[0] == group}
            usable = sum(not _lacks(group, files) for files in part.values())
            if usable < count and not (group == TEST and usable == 0):
                images, masks = (
                    sum(kind in files for files in part.values()) for kind in ("images", "masks")
                )
                got = f"{images} images" if group == TEST else f"{images} images, {masks} masks"
                text = f"{group.capitalize()}: {got} of {count}, {usable} usable"
                problems.append("; ".join([text, *_names(part, range(first, first + count))]))
            first += count
        return problems


def _lacks(group: str, files: _Files) -> str:
    """Which file of a pair is not there; empty if it is whole."""
    if "images" not in files:
        return "image"
    return "" if group == TEST or "masks" in files else "mask"


def _names(part: Mapping[_Key, _Files], numbers: range) -> list[str]:
    """What a part lacks, by name.

    Args:
        part: the files of its images.
        numbers: those of its images; gaps are only told where no other number occurs.
    """
    names = []
    for kind in ("mask", "image"):
        single = [f"{scene}/{n}" for (group, scene, n), files in part.items() if _lacks(group, files) == kind]
        if single:
            names.append(f"without {kind}: {listed(single, _SHOWN)}")
    present = {number for *_, number in part}
    absent = [str(number) for number in numbers if number not in present]
    if absent and present <= set(numbers):
        names.append(f"not there: {listed(absent, _SHOWN)}")
    return names
