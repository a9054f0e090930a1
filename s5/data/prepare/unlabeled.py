"""Any folder tree of JPEG, PNG, TIFF, BMP or WebP images -> patches and a list of them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from s5.data.files import write_bytes
from s5.data.folders import find_images
from s5.data.image_io import write_image
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.patches import Readable, open_image, plain_file, unique_stems, windows
from s5.data.prepare.recipe import Cut, Recipe, Source, require_name
from s5.data.splits import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Unlabeled(Recipe):
    """Patches go under ``unlabeled/NAME``, in the folders of the source tree.

    An image that fits into a patch and is plain 8-bit RGB JPEG or PNG is copied byte for byte; all others are
    cut and re-encoded. Patches wholly without data are left out.

    Attributes:
        name: name of the pool.
        min_size: images with a side below this many pixels are left out.
        format: ``jpg`` (quality 95) or ``png``; patches partly without data are PNG, transparent there.
    """

    command: ClassVar[str] = "unlabeled"
    help: ClassVar[str] = "any folder tree of images -> unlabeled/NAME, with a list for training"

    name: str = ""
    min_size: int = 32
    format: str = "jpg"

    def __post_init__(self) -> None:
        """Refuse names that cannot be a folder."""
        super().__post_init__()
        require_name(self.name)

    @property
    def folder(self) -> str:
        """Folder of the pool."""
        return f"unlabeled/{self.name}"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Name, smallest size and format, beside the common ones."""
        super().add_arguments(parser)
        parser.add_argument("--name", required=True, help="name of the pool: folder and list are called so")
        parser.add_argument(
            "--min-size", type=int, default=32, help="leave out images with a side below this (default: 32)"
        )
        parser.add_argument(
            "--format", choices=("jpg", "png"), default="jpg", help="of patches that are cut (default: jpg)"
        )

    def lists(self) -> Mapping[str, str]:
        """The one list of the pool."""
        return {"all": f"splits/unlabeled/{self.name}.txt"}

    def sources(self) -> list[Source]:
        """Every image below ``src``, in the order of their paths."""
        paths = find_images(self.src, leave_out=self.out / self.folder)
        if not paths:
            raise PrepareError(
                f"no images below {self.src}{self._what_is_there()}; expected a folder tree of files that "
                f"end in {', '.join(IMAGE_EXTENSIONS)}"
            )
        keys = [path.relative_to(self.src).as_posix() for path in paths]
        stems = unique_stems(keys)
        return [Source(key, "all", stem, path) for key, stem, path in zip(keys, stems, paths, strict=True)]

    def cut(self, source: Source) -> Cut:
        """Copy or cut one image; nothing for one that is too small."""
        with open_image(source.image) as image:
            if min(image.height, image.width) < self.min_size:
                return Cut(())
            if max(image.height, image.width) <= self.size:
                return _without_empty([self._whole(source, image)], image.note)
            cut = windows(image.height, image.width, self.size, self.overlap)
            patches = [
                self._write(window.name(source.stem), *image.read_with_valid(*window)) for window in cut
            ]
            return _without_empty(patches, image.note)

    def _whole(self, source: Source, image: Readable) -> Patch | None:
        plain = plain_file(source.image)
        if plain is None:
            return self._write(source.stem, *image.read_with_valid(0, 0, image.height, image.width))
        suffix, data = plain
        patch = Patch(f"{self.folder}/{source.stem}{suffix}")
        write_bytes(self.out / patch.image, data)
        return patch

    def _write(self, name: str, pixels: np.ndarray, valid: np.ndarray | None) -> Patch | None:
        """Write a patch, with an alpha channel where it partly lacks data; nothing of one wholly without."""
        if valid is not None and not valid.any():
            return None
        patch = Patch(f"{self.folder}/{name}.{self.format if valid is None else 'png'}")
        write_image(self.out / patch.image, pixels, valid=valid)
        return patch

    def _what_is_there(self) -> str:
        if not self.src.is_dir():
            return " (no such folder)"
        endings = Counter(
            path.suffix.lower() or "no ending" for path in self.src.rglob("*") if path.is_file()
        )
        found = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6))
        return f" (found: {found or 'nothing'})"


def _without_empty(patches: Sequence[Patch | None], note: str) -> Cut:
    written = tuple(patch for patch in patches if patch is not None)
    return Cut(written, note, without_data=len(patches) - len(written))
