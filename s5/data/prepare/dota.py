"""DOTA: objects of 15, 16 or 18 classes in aerial images of up to 29,200 x 27,620 pixels, cut into windows.

Ding et al., "Object Detection in Aerial Images: A Large-Scale Benchmark and Challenges", TPAMI 2021. Windows
are cut, named and given their objects as mmrotate's tool does, but for what is said at :class:`Dota`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from s5.data.folders import find_files, find_images
from s5.data.image_io import write_image
from s5.data.oriented.annotations import AnnotationReader, Objects, write_objects
from s5.data.oriented.classes import CLASSES, class_ids
from s5.data.oriented.geometry import share_inside
from s5.data.oriented.merge import LARGEST_RATE, window_name
from s5.data.oriented.samples import without_class_list
from s5.data.oriented.sources import pad_image, pad_valid
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.objects import TRAIN, VAL, ObjectsRecipe, by_stem, read_noted, require_own_names
from s5.data.prepare.patches import Readable, Window, open_image, safe_name, windows
from s5.data.prepare.recipe import Cut, Source

VERSIONS = {"1.0": "dota_v1", "1.5": "dota_v1_5", "2.0": "dota_v2"}
_HORIZONTAL = re.compile("hbb|reclabel|task2")  # folders of horizontal labels, as DOTA ships them
_WHOLE = 1 - 1e-6  # share inside, above which a window does not truncate an object
_EXPECTED = """expected below {src}, each part in a folder (train, val, test, test-dev, test-challenge):
  train/images/**/P0000.png ...             the images; of DOTA-v2.0, those of DOTA-v1.0 as well
  train/labelTxt-v2.0/**/P0000.txt ...      the oriented labels (labelTxt-v1.5 and -v1.0 for these versions,
                                            or labelTxt); the folders of horizontal ones are left out
  val/images, val/labelTxt-v2.0, test-dev/images ...   test parts without labels, also without images/
or images and labelTxt of one dataset in this format, which becomes train.
https://captain-whu.github.io/DOTA"""


@dataclass(frozen=True)
class Dota(ObjectsRecipe):
    """``NAME/PART/{images,annotations}`` of windows, and ``NAME/PART/whole`` with the labels of whole images.

    An object belongs to the windows that at least ``iof`` of its area is in. It stays whole, and its flag
    becomes 2 where the window truncates it; a difficult one stays difficult (in the tool, it would become 2).
    The parts of others are background. Windows without objects are kept: leaving them out is a matter of
    training. None is written of those that the image has no data in and that have no objects. What is smaller
    than a window is padded at the right and below, as by the tool, so that all have one scale. Nothing is
    resized: with rate 0.5, windows are twice as large.

    Attributes:
        version: of DOTA, which decides the labels and classes.
        classes: names of the classes, instead of those of the version.
        rates: scales at which objects are to be seen; the windows' size and overlap are divided by them.
        iof: share of an object's area.
        format: ``png`` or ``jpg``.
    """

    command: ClassVar[str] = "dota"
    help: ClassVar[str] = "DOTA, or your own data in its format -> NAME, windows with oriented objects"
    title: ClassVar[str] = "DOTA"
    layout: ClassVar[str] = _EXPECTED
    parts: ClassVar[tuple[str, ...]] = (TRAIN, VAL, "test", "test-dev", "test-challenge")
    optional_groups: ClassVar[tuple[str, ...]] = parts

    size: int = 1024
    overlap: int = 200
    version: str = "2.0"
    classes: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1.0,)
    iof: float = 0.7
    format: str = "png"

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is read."""
        super().__post_init__()
        if len(set(self.rates)) < len(self.rates) or not all(0.1 <= rate <= 10 for rate in self.rates):
            raise PrepareError(f"--rates must be different numbers from 0.1 to 10, got {list(self.rates)}")
        if self.size / max(self.rates) < LARGEST_RATE:
            raise PrepareError(f"--size {self.size} divided by the largest of --rates must be 16 or more")
        if not 0 < self.iof <= 1:
            raise PrepareError(f"--iof lies between 0 and 1, got {self.iof}")
        class_ids(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.classes) or CLASSES[VERSIONS[self.version]]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """The data, and how to cut them."""
        cls.add_source(parser)
        parser.add_argument("--out", type=Path, required=True, help="data root to write to")
        cls.add_name(parser)
        parser.add_argument("--version", choices=VERSIONS, default="2.0", help="of DOTA (default: 2.0)")
        parser.add_argument(
            "--classes",
            nargs="+",
            default=(),
            metavar="CLASS",
            help="of your own data (default: the version's)",
        )
        parser.add_argument("--size", type=int, default=1024, help="side of the windows (default: 1024)")
        parser.add_argument(
            "--gap", dest="overlap", type=int, default=200, help="pixels that neighbours share (default: 200)"
        )
        parser.add_argument(
            "--rates",
            nargs="+",
            type=float,
            default=(1.0,),
            metavar="RATE",
            help="scales; multi-scale: 0.5 1.0 1.5 (default: 1.0)",
        )
        parser.add_argument(
            "--iof", type=float, default=0.7, help="share of an object inside its windows (default: 0.7)"
        )
        formats = ("png", "jpg")
        parser.add_argument("--format", choices=formats, default="png", help="of windows (default: png)")

    def parameters(self) -> dict[str, Any]:
        """With lists, as JSON has no tuples."""
        lists = {"classes": list(self.classes), "rates": list(self.rates)}
        return {**super().parameters(), **lists, "padded": True}  # windows were not, once

    def sources(self) -> list[Source]:
        """Images and labels by name; one without the other cannot be used, and says so."""
        sources = [source for part in self.parts for source in self._part(part, self.src / part)]
        if not sources:
            sources = self._part(TRAIN, self.src)
        if not sources:
            raise self.incomplete("no images")
        require_own_names(sources)
        return sources

    def beside(self, source: Source) -> Sequence[str]:
        """The labels of the whole image."""
        return () if source.mask is None else (self._whole(source),)

    def cut(self, source: Source) -> Cut:
        """Cut one image at all scales."""
        objects, note = None, ""
        if source.mask is not None:
            objects, note = read_noted(AnnotationReader(self.names), source.mask)
        with open_image(source.image) as image:
            note = "; ".join(filter(None, (image.note, note)))
            cut = list(self._windows(image.height, image.width))
            written = [self._write(source, size, window, image, objects) for size, window in cut]
        patches = tuple(patch for patch in written if patch is not None)
        if objects is not None:
            write_objects(self.out / self._whole(source), objects, self.names)
        return Cut(patches, note, without_data=len(cut) - len(patches))

    def usage(self) -> str:
        """Folders and classes."""
        folder = self.out / self.folder
        classes = ", ".join(self.classes) or VERSIONS[self.version]
        there = [part for part in self.parts if (folder / part).is_dir()]
        labeled = [part for part in there if (folder / part / "annotations").is_dir()]
        tests = [
            f"{part}: {folder / part}/images, without labels; in a configuration test=dict(images="
            f"'{self.folder}/{part}/images', names='{self.folder}/splits/{part}.txt', windows=True)"
            for part in there
            if part not in labeled
        ]
        return "\n".join([self.usage_of(labeled, classes), *tests])

    def _whole(self, source: Source) -> str:
        return f"{self.folder}/{source.group}/whole/{source.stem}.txt"

    def _part(self, part: str, folder: Path) -> list[Source]:
        found = find_images(folder / "images")
        if part not in (TRAIN, VAL):
            found = found or find_images(folder)  # there is nothing else in it
        images = by_stem(found)
        texts = without_class_list(by_stem(self._texts(folder)), images)
        if not images or (not texts and part in (TRAIN, VAL)):
            if images or texts:
                what = f"{len(images)} images and {len(texts)} label files of version {self.version}"
                raise self.incomplete(f"{what} in {folder}")
            return []
        return [
            Source(
                key=f"{part}/{stem}",
                group=part,
                stem=safe_name(stem),
                image=images.get(stem) or folder / f"images/{stem}.png",
                mask=texts.get(stem) or (folder / f"labelTxt-v{self.version}/{stem}.txt" if texts else None),
            )
            for stem in sorted(images.keys() | texts.keys())
        ]

    def _texts(self, folder: Path) -> list[Path]:
        """Oriented labels of the version."""
        for name in (f"labelTxt-v{self.version}", "labelTxt"):
            texts = find_files(folder / name, endings=(".txt",))
            if texts:
                return [path for path in texts if not _HORIZONTAL.search(path.parent.name.lower())]
        return []

    def _windows(self, height: int, width: int) -> Iterator[tuple[int, Window]]:
        """Windows of an image with their nominal size."""
        for rate in self.rates:
            size = int(self.size / rate)
            for window in windows(height, width, size, int(self.overlap / rate)):
                yield size, window

    def _write(
        self, source: Source, size: int, window: Window, image: Readable, objects: Objects | None
    ) -> Patch | None:
        """Write a window and its objects; nothing of one wholly without data, unless it has objects."""
        pixels, valid = image.read_with_valid(*window)
        inside, truncated = (None, None) if objects is None else _in_window(objects, window, self.iof)
        if valid is not None and not valid.any() and (inside is None or not len(inside.labels)):
            return None
        name = window_name(source.stem, size, window.left, window.top)
        suffix = f".{self.format}" if valid is None else ".png"
        patch = self.place(source.group, name, suffix, objects is not None)
        if min(window.height, window.width) < size:
            pixels = pad_image(pixels, size)
            valid = None if valid is None else pad_valid(valid, size)
        write_image(self.out / patch.image, pixels, valid=valid)
        if inside is not None:
            write_objects(self.out / str(patch.mask), inside, self.names, truncated)
        return patch


def _in_window(objects: Objects, window: Window, iof: float) -> tuple[Objects, np.ndarray]:
    """The objects of a window, in its pixels, and which of them it truncates."""
    top, left, height, width = window
    share = share_inside(objects.polygons, (left, top, left + width, top + height))
    kept = share >= iof
    inside = objects.select(kept)
    moved = inside.polygons - np.array([left, top], np.float32)
    return Objects(moved, inside.labels, inside.difficult), share[kept] < _WHOLE
