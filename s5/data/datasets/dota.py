"""DOTA: oriented objects of 15, 16 or 18 classes in large aerial images."""

import re
from pathlib import Path
from typing import Any

from s5.data.datasets.base import TEST, TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source, by_stem, safe_name
from s5.data.folders import find_files, find_images
from s5.data.oriented.annotations import without_class_list

_URL = "https://captain-whu.github.io/DOTA"
_HORIZONTAL = re.compile("hbb|reclabel|task2")  # folders of horizontal labels, as DOTA ships them
_PARTS = (TRAIN, VAL, TEST, "test-dev", "test-challenge")

DOTA_V2 = tuple(
    """
    plane baseball-diamond bridge ground-track-field small-vehicle large-vehicle ship tennis-court
    basketball-court storage-tank soccer-ball-field roundabout harbor swimming-pool helicopter
    container-crane airport helipad
    """.split()
)
"""DOTA-v2.0 in the order of its authors."""
DOTA_V1_5 = DOTA_V2[:16]  # without airport and helipad
DOTA_V1 = DOTA_V2[:15]  # without container-crane
DOTA_V2_PUBLISHED = tuple(
    """
    large-vehicle swimming-pool helicopter bridge plane ship soccer-ball-field basketball-court
    ground-track-field small-vehicle baseball-diamond tennis-court roundabout storage-tank harbor
    container-crane airport helipad
    """.split()
)
"""DOTA-v2.0 in the order of the published classifier, which is that of the tool that cut its windows."""
DOTA_V2_AS_STORED = tuple(DOTA_V2[DOTA_V2_PUBLISHED.index(name)] for name in DOTA_V2)
"""Class of each row of a published classifier after loading, if the file had them in the order of `DOTA_V2`.

Loading takes the rows to be in the order of `DOTA_V2_PUBLISHED` and sorts them; this list undoes it.
"""


class Dota(Dataset):
    """Aerial images of up to 29,200 x 27,620 pixels with text annotations of oriented boxes.

    `version` is 1.0, 1.5 or 2.0 and decides labels and classes. The test parts have no public labels. A
    user's own `images` and `labelTxt` in this format become the split train. Prepared images are windows.
    """

    name = "dota"
    title = "DOTA"
    summary = "DOTA, or your own data in its format -> NAME, windows with oriented objects"
    url = _URL
    licence = "academic use only; Google Earth images under the terms of Google Earth"
    citation = (
        "Ding et al., Object Detection in Aerial Images: A Large-Scale Benchmark and Challenges, TPAMI 2021"
    )
    layout = f"""expected below {{src}}, each part in a folder (train, val, test, test-dev, test-challenge):
  train/images/**/P0000.png ...             the images; of DOTA-v2.0, those of DOTA-v1.0 as well
  train/labelTxt-v2.0/**/P0000.txt ...      the oriented labels (labelTxt-v1.5 and -v1.0 for these versions,
                                            or labelTxt); the folders of horizontal ones are left out
  val/images, val/labelTxt-v2.0, test-dev/images ...   test parts without labels, also without images/
or images and labelTxt of one dataset in this format, which becomes train.
{_URL}"""
    class_lists = {
        "dota_v1": DOTA_V1,
        "dota_v1_5": DOTA_V1_5,
        "dota_v2": DOTA_V2,
        "dota_v2_as_stored": DOTA_V2_AS_STORED,
    }
    versions = {"1.0": "dota_v1", "1.5": "dota_v1_5", "2.0": "dota_v2"}
    counts = {TRAIN: 1830, VAL: 593, "test-dev": 2792, "test-challenge": 6053}  # of DOTA-v2.0
    splits = {part: (part,) for part in _PARTS}
    optional = _PARTS
    patch = 1024
    overlap = 200
    inner_archives = None
    options = {"version": {"choices": versions, "default": "2.0", "help": "of DOTA (default: 2.0)"}}

    @classmethod
    def class_list(cls, version: str = "2.0", **options: Any) -> str:
        """The classes of a version."""
        return cls.versions[version]

    @classmethod
    def find(cls, shipped: Shipped, version: str) -> list[Source]:
        """Images and labels paired by name; those without a partner are reported as unusable."""
        sources = [s for part in cls.splits for s in _part(shipped, part, shipped.src / part, version)]
        sources = sources or _part(shipped, TRAIN, shipped.src, version)
        if not sources:
            raise shipped.incomplete("no images")
        return sources


def _part(shipped: Shipped, part: str, folder: Path, version: str) -> list[Source]:
    found = find_images(folder / "images")
    if part not in (TRAIN, VAL):
        found = found or find_images(folder)  # archives of test parts contain only images
    images = by_stem(found)
    texts = without_class_list(by_stem(_texts(folder, version)), images)
    if not images or (not texts and part in (TRAIN, VAL)):
        if images or texts:
            what = f"{len(images)} images and {len(texts)} label files of version {version}"
            raise shipped.incomplete(f"{what} in {folder}")
        return []
    return [
        Source(
            key=f"{part}/{stem}",
            group=part,
            stem=safe_name(stem),
            image=images.get(stem) or folder / f"images/{stem}.png",
            mask=texts.get(stem) or (folder / f"labelTxt-v{version}/{stem}.txt" if texts else None),
        )
        for stem in sorted(images.keys() | texts.keys())
    ]


def _texts(folder: Path, version: str) -> list[Path]:
    """Oriented labels of the version."""
    for name in (f"labelTxt-v{version}", "labelTxt"):
        texts = find_files(folder / name, endings=(".txt",))
        if texts:
            return [path for path in texts if not _HORIZONTAL.search(path.parent.name.lower())]
    return []
