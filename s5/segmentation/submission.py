"""Submission for LoveDA's evaluation server: a flat zip of the test images' index masks.

It holds `<number>.png` for every test image, 8-bit greyscale, with classes 0 to 6 in the order of the label
table `loveda`, as written by github.com/Junjue-Wang/LoveDA. Shipped and predicted masks count from 1 instead.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import yaml

from s5.data.datasets import TABLES, LoveDA
from s5.data.files import atomic_path, require_zip_name, write_zip
from s5.data.folders import find_images
from s5.data.image_io import image_size, read_mask
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.errors import DataError, is_utf8, shorten
from s5.prediction.sources import SETTINGS_FILE

logger = logging.getLogger(__name__)

SERVER = "loveda_train_ids"
"""Label table of the masks that the server accepts."""
VALUES = {"raw": "loveda", "ids": SERVER}
"""Label tables of predictions, by the values of `--values`."""


def find_tests(images: Path, partial: bool = False) -> dict[str, Path]:
    """Find the test images, by the names of their masks in the zip and in its order.

    Args:
        images: Folder of the test images, searched recursively.
        partial: Accept a number of images other than that of LoveDA's test split.

    Raises:
        DataError: There are no images, two with the same name, or not as many as the server expects.
    """
    tests = _by_stem(images, "test images")
    count = LoveDA.counts["test"]
    if len(tests) != count and not partial:
        raise DataError(
            f"{images}: {len(tests)} images, but LoveDA's test split has {count} and the server accepts "
            f"no other number of masks; give the complete split (--partial writes the file nevertheless)"
        )
    return tests


def pack_loveda(
    predictions: Path, images: Path, out: Path, values: str | None = None, partial: bool = False
) -> int:
    """Check the predictions of the test images and write the submission atomically.

    Args:
        predictions: Folder of index masks, or an output folder of `predict.py`, which has them in
            `loveda/index` or `index`.
        images: Folder of the test images, searched recursively.
        out: The zip file.
        values: `raw` (1 to 7) or `ids` (0 to 6); None reads `prediction.yaml` beside the masks or, if there
            is none, infers it from a 0 or a 7 in any of the masks.
        partial: See :func:`find_tests`.

    Returns:
        Number of masks in the submission.

    Raises:
        DataError: Images or predictions are missing or superfluous, or a prediction has a wrong size or
            invalid values; names them.
    """
    require_zip_name(out)
    folder = _mask_folder(predictions)
    tests, masks = find_tests(images, partial), _by_stem(folder, "predictions")
    _require_pairs(tests, masks, folder)
    histogram = np.zeros(256, np.int64)
    for stem, path in masks.items():
        histogram += _histogram(path, tests[stem])
    table = _written_in(folder, histogram, values)
    with atomic_path(out) as temporary:
        write_zip(temporary, _members(masks, table), zipfile.ZIP_STORED)  # PNGs are compressed already
    return len(masks)


def _mask_folder(predictions: Path) -> Path:
    """Return the folder with the index masks in a folder of predictions."""
    for folder in (predictions / "loveda" / "index", predictions / "index", predictions):
        if folder.is_dir():
            return folder
    raise DataError(f"{predictions}: no such folder; give one that predict.py wrote, or one of index masks")


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    """Find images by their name in the zip, in its order."""
    by_stem: dict[str, Path] = {}
    for path in find_images(folder):
        if not is_utf8(path.stem):
            raise DataError(f"{path}: its name is not UTF-8, which a zip archive requires; rename it")
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise DataError(
                f"{other} and {path}: {what} with the same name, but the zip has no folders; rename one"
            )
    if not by_stem:
        raise DataError(f"{folder}: no {what} found")
    return dict(sorted(by_stem.items()))


def _require_pairs(tests: Mapping[str, Path], masks: Mapping[str, Path], folder: Path) -> None:
    missing = [stem for stem in tests if stem not in masks]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(tests)} predictions are missing: {shorten(missing)}. Predict "
            f"them first (predict.py --resume continues)"
        )
    extra = [stem for stem in masks if stem not in tests]
    if extra:
        raise DataError(
            f"{folder}: {len(extra)} predictions do not belong to a test image: {shorten(extra)}. Give a "
            f"folder with the predictions of the test images only"
        )


def _histogram(path: Path, image: Path) -> np.ndarray:
    """Count the pixels of each value, int64 (256,), of a mask that must have the size of its image."""
    mask, size = read_mask(path), image_size(image)
    if mask.shape != size:
        raise DataError(
            f"{path}: {mask.shape[0]}x{mask.shape[1]} pixels (height x width), its image {image} has "
            f"{size[0]}x{size[1]}; predict the image itself"
        )
    counts = np.bincount(mask.ravel(), minlength=256)
    if counts[8:].any():
        value = int(np.flatnonzero(counts[8:])[0]) + 8
        raise DataError(
            f"{path}: value {value} ({counts[value]} pixels) is not a class of LoveDA; give index masks of "
            f"LoveDA, not those of another task"
        )
    return counts


def _written_in(folder: Path, histogram: np.ndarray, values: str | None) -> LabelTable:
    """Return the label table of the masks."""
    settings = folder.parent / SETTINGS_FILE
    if values is not None:
        table = TABLES[VALUES[values]]
    elif settings.is_file():
        table = get_table(yaml.safe_load(settings.read_text(encoding="utf-8"))["labels"])
        if table.classes != TABLES[SERVER].classes:
            raise DataError(
                f"{settings}: the predictions have the classes {', '.join(table.classes)}, not LoveDA's"
            )
    elif bool(histogram[0]) == bool(histogram[7]):
        present = "both 0 and 7" if histogram[0] else "neither 0 nor 7"
        raise DataError(
            f"{folder}: the masks contain {present}, so it is unclear whether classes count from 0 or 1; "
            f"choose --values raw (1 to 7, as shipped) or --values ids (0 to 6)"
        )
    else:
        table = TABLES[VALUES["ids" if histogram[0] else "raw"]]
    wrong = [v for v in np.flatnonzero(histogram) if v not in table.values]
    if wrong:
        raise DataError(
            f"{folder}: value {wrong[0]} ({histogram[wrong[0]]} pixels) is not a class; masks of this kind "
            f"have the values {min(table.values)} to {max(table.values)}"
        )
    logger.info("predictions use the values %d to %d", min(table.values), max(table.values))
    return table


def _members(masks: Mapping[str, Path], table: LabelTable) -> Iterator[tuple[str, bytes]]:
    for stem, mask in masks.items():
        ids = table.encode(read_mask(mask), mask)
        yield f"{stem}.png", cv2.imencode(".png", ids)[1].tobytes()
