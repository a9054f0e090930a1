"""What a data set has to say to be prepared: a new one subclasses `Recipe` or `LabeledRecipe`."""

from __future__ import annotations

import argparse
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from s5.data.errors import ImageError, LabelError
from s5.data.image_io import write_image, write_mask
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.patches import open_image, windows
from s5.data.splits import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Source:
    """One file to cut.

    Attributes:
        key: what the journal calls it; unique and the same in every run.
        group: the split list its patches go to, a key of :meth:`Recipe.lists`.
        stem: path of its patches below the group's folder, without window and extension; unique in the group.
        image: the image file.
        mask: the mask file, where the data set has labels.
    """

    key: str
    group: str
    stem: str
    image: Path
    mask: Path | None = None

    def __str__(self) -> str:
        return str(self.image)


@dataclass(frozen=True)
class Recipe(ABC):
    """How one data set is found, cut and listed.

    Attributes:
        src: folder of the data set as its provider ships it.
        out: data root; everything is written below it.
        size: side of the patches in pixels.
        overlap: pixels that neighbouring patches share.
    """

    command: ClassVar[str]
    help: ClassVar[str]

    src: Path
    out: Path
    size: int = 512
    overlap: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.size < 16 or not 0 <= self.overlap < self.size:
            raise PrepareError(
                "--size must be at least 16 and --overlap from 0 to below --size, "
                f"got {self.size} and {self.overlap}"
            )

    @property
    @abstractmethod
    def folder(self) -> str:
        """Folder of the patches and the journal, relative to ``out``."""

    @abstractmethod
    def lists(self) -> Mapping[str, str]:
        """Split file, relative to ``out``, of each group of sources."""

    @abstractmethod
    def sources(self) -> list[Source]:
        """The files to cut.

        Raises:
            PrepareError: the data set is not there; says what was expected where and where to get it.
        """

    @abstractmethod
    def cut(self, source: Source) -> tuple[Patch, ...]:
        """Write the patches of one source file; runs in a worker process.

        Raises:
            DataError: the source cannot be used. It is reported, and the others go on.
        """

    def parameters(self) -> dict[str, Any]:
        """What the patches depend on; a journal with other parameters is refused."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "out"}
        return {"command": self.command, **values, "src": str(self.src.absolute())}

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments; their names are those of the recipe's fields."""
        parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")
        parser.add_argument("--out", type=Path, required=True, help="data root to write to")
        parser.add_argument("--size", type=int, default=512, help="side of the patches (default: 512)")
        parser.add_argument("--overlap", type=int, default=0, help="pixels neighbours share (default: 0)")


def find_images(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All image files below ``folder``, sorted; follows links, leaves out hidden files and ``leave_out``."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (leave_out is not None and real == os.path.realpath(leave_out)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (n for n in names if n.lower().endswith(IMAGE_EXTENSIONS) and not n.startswith("."))
        found += [Path(parent, name) for name in images]
    return sorted(found)


class LabeledRecipe(Recipe):
    """A data set of images with masks: ``folder/group/{images,masks}/stem_window.png``."""

    @abstractmethod
    def raw_mask(self, path: Path) -> np.ndarray:
        """The mask in the raw values of its label table, uint8 (H, W)."""

    def cut(self, source: Source) -> tuple[Patch, ...]:
        """Cut image and mask along the same windows."""
        if source.mask is None:
            raise LabelError(f"{source.image}: no mask found for it")
        patches = []
        with open_image(source.image) as image:
            mask = self.raw_mask(source.mask)
            if mask.shape != (image.height, image.width):
                raise ImageError(
                    source.mask,
                    f"mask of {mask.shape[0]}x{mask.shape[1]} pixels for an image of "
                    f"{image.height}x{image.width} (height x width), {source.image}",
                )
            for window in windows(image.height, image.width, self.size, self.overlap):
                name = window.name(source.stem)
                base = f"{self.folder}/{source.group}"
                patch = Patch(f"{base}/images/{name}.png", mask_path := f"{base}/masks/{name}.png")
                write_image(self.out / patch.image, image.read(*window))
                write_mask(self.out / mask_path, window.of(mask))
                patches.append(patch)
        return tuple(patches)
