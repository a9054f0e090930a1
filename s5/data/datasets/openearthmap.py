"""OpenEarthMap: land cover of 97 regions on six continents; images from xBD must be added."""

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from s5.data.datasets.base import TEST, TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source
from s5.data.folders import find_images
from s5.data.label_table import build_table
from s5.data.splits import write_split
from s5.errors import PrepareError, shorten

logger = logging.getLogger(__name__)

_URL = "https://zenodo.org/record/7223446"
_WHERE_XBD = "xBD (free, after registration): https://xview2.org/dataset"
_FILE = re.compile(r"(?:.*/)?(?P<kind>images|labels)/(?P<name>[^/]+\.tiff?)")
_LISTS = {TRAIN: "train.txt", VAL: "val.txt", TEST: "test.txt"}
_XBD_TABLE = "xbd_files.csv"
_MISSING = "missing_xbd.txt"  # in the folder of the prepared dataset

_Found = Mapping[str, Mapping[str, Path]]  # files by lower-case name, of "images", "labels" and "others"


class OpenEarthMap(Dataset):
    """5000 GeoTIFFs of mostly 1024 x 1024 pixels at 25 to 50 cm; index masks of 0 to 8, 0 is no class.

    The labels of the test part are not public. The archive lacks the images from xBD, which may not be
    redistributed; `xbd` is the folder of that dataset (`*_pre_disaster.png` anywhere below it).
    """

    name = "openearthmap"
    title = "OpenEarthMap"
    summary = "OpenEarthMap, by its own lists; images from xBD must be added"
    url = _URL
    licence = "labels mostly CC BY-NC-SA 4.0, images under the terms of their sources"
    citation = (
        "Xia et al., OpenEarthMap: A Benchmark Dataset for Global High-Resolution Land Cover Mapping, "
        "WACV 2023"
    )
    layout = f"""expected below {{src}}, as folders or as OpenEarthMap.zip:
  train.txt, val.txt, test.txt, xbd_files.csv
  REGION/images/REGION_1.tif ... and REGION/labels/REGION_1.tif ...   (aachen, abancay, ...)
Get it from {_URL}
{_WHERE_XBD}; give its folder with --xbd"""
    # Ids and colours of open-earth-map.org; pixels of no class are 0, the class background.
    tables = (
        build_table(
            "openearthmap",
            ("background", (0, 0, 0)),
            ("bareland", (128, 0, 0)),
            ("rangeland", (0, 255, 36)),
            ("developed_space", (148, 148, 148)),
            ("road", (255, 255, 255)),
            ("tree", (34, 97, 38)),
            ("water", (0, 69, 255)),
            ("agriculture_land", (75, 181, 73)),
            ("building", (222, 31, 7)),
            background=0,
        ),
    )
    counts = {TRAIN: 3000, VAL: 500, TEST: 1500}
    splits = {TRAIN: (TRAIN,), VAL: (VAL,), TEST: (TEST,)}
    patch = 0
    options = {
        "xbd": {"type": Path, "default": None, "help": "folder of the xBD images (PNG), unpacked"},
        "require_all": {"action": "store_true", "help": "stop when images from xBD are missing"},
    }
    not_remembered = ("xbd", "require_all")
    usage = "labels: openearthmap (9 ids; 0, no class, counts as background)"

    @classmethod
    def find(cls, shipped: Shipped, xbd: Path | None, require_all: bool) -> list[Source]:
        """The listed images; missing xBD images are listed in a file, other missing images are an error."""
        found = _find(shipped)
        from_xbd = _from_xbd(shipped, found)
        xbd_images = _xbd_images(xbd)
        sources, missing, xbd_missing = [], [], []
        for group, name in _names(shipped, found):
            image = found["images"].get(name) or xbd_images.get(from_xbd.get(name, ""))
            label = found["labels"].get(name)
            if image is not None and (label is not None or group == TEST):
                stem = name.rpartition(".")[0]
                sources.append(Source(f"{group}/{stem}", group, stem, image, label))
            elif image is None and name in from_xbd:
                xbd_missing.append(name)
            else:  # test images have no labels
                missing.append(f"{'labels' if image else 'images'} {name}")
                if image is not None:
                    problem = f"{image}: its label is missing"
                    sources.append(Source(f"{group}/{name}", group, name, image, problem=problem))
        _report_xbd(shipped.folder, sorted(xbd_missing), from_xbd, require_all)
        if missing:
            names = shorten(missing, 10)
            shipped.require([f"{len(missing)} files of train.txt, val.txt and test.txt: {names}"])
        return sources


def _find(shipped: Shipped) -> _Found:
    found: dict[str, dict[str, Path]] = {"images": {}, "labels": {}, "others": {}}
    for relative, path in shipped.files():
        match = _FILE.fullmatch(relative)
        kind, name = (match["kind"], match["name"]) if match else ("others", relative.rpartition("/")[2])
        found[kind].setdefault(name, path)
    return found


def _names(shipped: Shipped, found: _Found) -> list[tuple[str, str]]:
    """Part and name of every listed image."""
    lists = found["others"]
    lacking = [name for group, name in _LISTS.items() if name not in lists and group != TEST]
    if lacking:
        raise PrepareError(
            f"OpenEarthMap below {shipped.src}: no {' and '.join(lacking)}.\n{shipped.expected}"
        )
    return [
        (group, name.lower())
        for group, file in _LISTS.items()
        if file in lists
        for name in shipped.read_text(lists[file]).split()
    ]


def _from_xbd(shipped: Shipped, found: _Found) -> dict[str, str]:
    """Name of the xBD image of each image that comes from there."""
    if _XBD_TABLE not in found["others"]:
        return {}
    rows = csv.reader(shipped.read_text(found["others"][_XBD_TABLE]).splitlines())
    return {row[1].strip().lower(): row[0].strip().lower() for row in rows if len(row) == 2}


def _xbd_images(folder: Path | None) -> dict[str, Path]:
    """Images of xBD by their names in lower case."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise PrepareError(f"--xbd {folder}: no such folder")
    found = {path.name.lower(): path for path in find_images(folder)}
    if not any(name.endswith("_pre_disaster.png") for name in found):
        geotiffs = sum(name.endswith(("_pre_disaster.tif", "_pre_disaster.tiff")) for name in found)
        what = (
            f"{geotiffs} GeoTIFFs, but no *_pre_disaster.png below it: this is the GeoTIFF edition of "
            "xBD, which does not match OpenEarthMap's labels. Get the datasets of the challenge (train, "
            "tier3, test, hold), whose images are PNG"
            if geotiffs
            else "no *_pre_disaster.png below it; unpack the archives of xBD"
        )
        raise PrepareError(f"--xbd {folder}: {what}. {_WHERE_XBD}")
    return found


def _report_xbd(
    folder: Path | None, missing: list[str], from_xbd: Mapping[str, str], require_all: bool
) -> None:
    """Write the list of missing xBD images, or remove an old one."""
    path = None if folder is None else folder / _MISSING
    if not missing:
        if path is not None:
            path.unlink(missing_ok=True)
        return
    text = (
        f"{len(missing)} images of OpenEarthMap come from xBD, which may not be redistributed, and are "
        f"missing: {shorten(missing)}. "
    )
    if path is not None:
        lines = [f"{from_xbd[name]} -> {name.rpartition('_')[0]}/images/{name}" for name in missing]
        write_split(path, lines)
        text += f"All are listed in {path}. "
    text += f"{_WHERE_XBD}; unpack it and pass --xbd DIR"
    if require_all:
        raise PrepareError(text)
    logger.warning("%s. Continuing without them", text)
