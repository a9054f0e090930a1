"""DIOR-R: 20 classes of oriented objects in 23,463 images of 800 x 800 pixels.

Cheng et al., "Anchor-free Oriented Proposal Generator for Object Detection", TGRS 2022; the images are those
of DIOR (Li et al., ISPRS 2020). The official parts: 5862 images for training, 5863 for validation, 11738 for
testing; results are usually of training on the first two, scored on the third.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s5.data.files import write_bytes
from s5.data.folders import find_files
from s5.data.image_io import read_image
from s5.data.oriented.annotations import AnnotationReader, write_objects
from s5.data.oriented.classes import DIOR_R
from s5.data.prepare.objects import ObjectsRecipe, by_stem, read_noted, require_own_names
from s5.data.prepare.patches import safe_name
from s5.data.prepare.recipe import Cut, Source
from s5.data.splits import IMAGE_EXTENSIONS, read_list

ORIENTED = "Oriented Bounding Boxes"
_EXPECTED = """expected below {src}:
  JPEGImages-trainval/00001.jpg ...                      the images of train and val
  JPEGImages-test/11726.jpg ...                          the images of test
  Annotations/Oriented Bounding Boxes/00001.xml ...      the oriented annotations of all
  ImageSets/Main/train.txt, val.txt, test.txt            names of the images of each part
(Folders in between do not matter.)
https://gcheng-nwpu.github.io"""


@dataclass(frozen=True)
class DiorR(ObjectsRecipe):
    """``NAME/{train,val,test}/{images,annotations}``: images as they are, annotations as DOTA's text."""

    command: ClassVar[str] = "dior_r"
    help: ClassVar[str] = "DIOR-R -> NAME, whole images with oriented objects, in the official parts"
    title: ClassVar[str] = "DIOR-R"
    layout: ClassVar[str] = _EXPECTED

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Only where the data are and where they go: nothing is cut."""
        cls.add_source(parser)
        parser.add_argument("--out", type=Path, required=True, help="data root to write to")
        cls.add_name(parser)
        parser.set_defaults(size=cls.size, overlap=cls.overlap)

    def sources(self) -> list[Source]:
        """The images that the official lists name."""
        files = find_files(self.src, leave_out=self.out / self.folder)
        texts = by_stem(path for path in files if ORIENTED in path.parts and path.suffix.lower() == ".xml")
        lists = {path.stem: path for path in files if path.parent.name == "Main" and path.suffix == ".txt"}
        parts = {part: lists[part] for part in self.parts if part in lists}
        images = by_stem(path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
        if not (texts and parts and images):
            raise self.incomplete(
                f"{len(images)} images, {len(texts)} oriented annotations, {len(parts)} of 3 lists"
            )
        sources = [
            Source(
                key=f"{part}/{stem}",
                group=part,
                stem=safe_name(stem),
                image=images.get(stem) or self.src / f"{stem}.jpg",
                mask=texts.get(stem) or self.src / "Annotations" / ORIENTED / f"{stem}.xml",
            )
            for part, path in parts.items()
            for stem in sorted(set(read_list(path).decode("utf-8-sig", "surrogateescape").split()))
        ]
        require_own_names(sources)
        return sources

    def cut(self, source: Source) -> Cut:
        """Copy an image that can be read, and write its annotation."""
        assert source.mask is not None
        objects, note = read_noted(AnnotationReader(DIOR_R), source.mask)
        read_image(source.image)  # says here, not in training, if it is damaged
        patch = self.place(source.group, source.stem, source.image.suffix.lower())
        write_objects(self.out / str(patch.mask), objects, DIOR_R)
        write_bytes(self.out / patch.image, source.image.read_bytes())
        return Cut((patch,), note)

    def usage(self) -> str:
        """Folders and classes."""
        return self.usage_of(self.parts, "dior_r")
