"""LoveDA: land cover of urban and rural scenes in three Chinese cities."""

import logging
from collections.abc import Mapping
from pathlib import Path

from s5.data.datasets.base import TEST, TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source
from s5.data.label_table import RGB, build_table
from s5.errors import PrepareError, shorten

logger = logging.getLogger(__name__)

_URL = "https://zenodo.org/record/5706578"
_FILE = (
    r"(train|val|test)(?:\.zip)?/(?:.*/)?(urban|rural)(?:\.zip)?/"  # part and scene
    r"(images|masks)_png/(\d+)\.png"
)
_SHOWN = 10  # names in a message

_Key = tuple[str, str, int]  # part, scene, number
_Files = dict[str, Path]  # by kind

# Colours of the authors' page (github.com/Junjue-Wang/LoveDA).
_CLASSES: tuple[tuple[str, RGB], ...] = (
    ("background", (255, 255, 255)),
    ("building", (255, 0, 0)),
    ("road", (255, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (159, 129, 183)),
    ("forest", (0, 255, 0)),
    ("agricultural", (255, 195, 128)),
)


class LoveDA(Dataset):
    """5987 PNG images of 1024 x 1024 pixels at 30 cm; index masks of 1 to 7, 0 is no-data.

    The masks of the test part are not public. The split `trainval` is for runs that are scored only by the
    evaluation server. The table `loveda_train_ids` reads masks that were shifted to count from 0.
    """

    name = "loveda"
    title = "LoveDA"
    summary = "LoveDA, 2522 images for training, 1669 for validation, 1796 for submissions"
    url = _URL
    licence = "CC BY-NC-SA 4.0"
    citation = (
        "Wang et al., LoveDA: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic Segmentation, "
        "NeurIPS Datasets and Benchmarks 2021"
    )
    layout = f"""expected below {{src}}, as folders or as archives:
  Train(.zip)/{{{{Urban,Rural}}}}/images_png/*.png and masks_png/*.png     2522 images
  Val(.zip)/{{{{Urban,Rural}}}}/images_png/*.png and masks_png/*.png       1669 images
  Test(.zip)/{{{{Urban,Rural}}}}/images_png/*.png                          1796 images, only for submissions
Get it from {_URL}"""
    tables = (
        build_table("loveda", *_CLASSES, values=tuple(range(1, 8)), background=0, ignore_values=(0,)),
        build_table("loveda_train_ids", *_CLASSES, background=0),
    )
    twins = {"loveda_train_ids": "loveda"}
    zero = "no data"
    # Numbered consecutively: 0 to 2521, 2522 to 4190, 4191 to 5986.
    counts = {TRAIN: 2522, VAL: 1669, TEST: 1796}
    splits = {TRAIN: (TRAIN,), VAL: (VAL,), TEST: (TEST,), "trainval": (TRAIN, VAL)}
    patch = 0
    inner_archives = r"(train|val|test|urban|rural)\.zip"
    usage = "labels: loveda (values 1 to 7 are the classes, 0 is no-data and ignored)"

    @classmethod
    def find(cls, shipped: Shipped) -> list[Source]:
        """All pairs of image and mask, the test images, and files without a partner, which are reported."""
        found: dict[_Key, _Files] = {}
        for (group, scene, kind, number), path in shipped.match(_FILE).items():
            found.setdefault((group, scene.capitalize(), int(number)), {}).setdefault(kind, path)
        shipped.require(_lacking(found, cls.counts))
        sources = [_source(key, files) for key, files in sorted(found.items())]
        if not any(source.group == TRAIN and not source.problem for source in sources):
            raise PrepareError(
                f"no LoveDA training images with masks below {shipped.src}.\n{shipped.expected}"
            )
        if shipped.folder is not None and not any(source.group == TEST for source in sources):
            logger.warning("no LoveDA test images below %s: no list for submissions is written", shipped.src)
        return sources


def _source(key: _Key, files: _Files) -> Source:
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


def _lacking(found: Mapping[_Key, _Files], counts: Mapping[str, int]) -> list[str]:
    problems, first = [], 0
    for group, count in counts.items():
        part = {key: files for key, files in sorted(found.items()) if key[0] == group}
        usable = sum(not _lacks(group, files) for files in part.values())
        if usable < count and not (group == TEST and usable == 0):
            images, masks = (sum(kind in files for files in part.values()) for kind in ("images", "masks"))
            got = f"{images} images" if group == TEST else f"{images} images, {masks} masks"
            text = f"{group.capitalize()}: {got} of {count}, {usable} usable"
            problems.append("; ".join([text, *_names(part, range(first, first + count))]))
        first += count
    return problems


def _lacks(group: str, files: _Files) -> str:
    """The missing file of a pair, `image` or `mask`; empty if the pair is complete."""
    if "images" not in files:
        return "image"
    return "" if group == TEST or "masks" in files else "mask"


def _names(part: Mapping[_Key, _Files], numbers: range) -> list[str]:
    """Describe the files that a part lacks, by name.

    Args:
        part: The files of the part.
        numbers: Numbers of its images; gaps are reported only if no other number occurs.
    """
    names = []
    for kind in ("mask", "image"):
        single = [f"{scene}/{n}" for (group, scene, n), files in part.items() if _lacks(group, files) == kind]
        if single:
            names.append(f"without {kind}: {shorten(single, _SHOWN)}")
    present = {number for *_, number in part}
    absent = [str(number) for number in numbers if number not in present]
    if absent and present <= set(numbers):
        names.append(f"not there: {shorten(absent, _SHOWN)}")
    return names
