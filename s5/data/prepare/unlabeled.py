"""Any folder tree of JPEG, PNG, TIFF, BMP or WebP images -> patches and a list of them."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s5.data.datasets.shipped import Source
from s5.data.files import write_bytes
from s5.data.folders import find_images
from s5.data.image_io import write_image
from s5.data.prepare.journal import Patch
from s5.data.prepare.patches import Readable, open_image, plain_file, unique_stems, windows
from s5.data.prepare.pipeline import Cut, Plan, plan_parameters, require_name, require_sizes
from s5.data.prepare.segmentation import add_sizes
from s5.data.splits import IMAGE_EXTENSIONS
from s5.errors import PrepareError

SUMMARY = "any folder tree of images -> unlabeled/NAME, with a list for training"


@dataclass(frozen=True)
class ImageCutter:
    """Copy or cut an image to `folder`, below the folders of the source tree.

    An image that fits into a patch and is plain 8-bit RGB JPEG or PNG is copied byte for byte; all others are
    cut and re-encoded. Patches wholly without data are left out.

    Attributes:
        out: data root.
        folder: folder of the pool below it.
        size: side of the patches in pixels.
        overlap: pixels that neighbouring patches share.
        min_size: images with a side below this many pixels are left out.
        format: `jpg` (quality 95) or `png`; patches partly without data are PNG, transparent there.
    """

    out: Path
    folder: str
    size: int
    overlap: int = 0
    min_size: int = 32
    format: str = "jpg"

    def __call__(self, source: Source) -> Cut:
        """Write the patches of one image; none of one that is too small.

        Raises:
            ImageError: the image cannot be read.
        """
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


def _without_empty(patches: Sequence[Patch | None], note: str) -> Cut:
    written = tuple(patch for patch in patches if patch is not None)
    return Cut(written, note, without_data=len(patches) - len(written))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")
    add_sizes(parser, 512, 0)
    parser.add_argument("--name", required=True, help="name of the pool: folder and list are called so")
    parser.add_argument(
        "--min-size", type=int, default=32, help="leave out images with a side below this (default: 32)"
    )
    parser.add_argument(
        "--format", choices=("jpg", "png"), default="jpg", help="of patches that are cut (default: jpg)"
    )


def plan(args: argparse.Namespace) -> Plan:
    """Every image below `--src`, in the order of their paths.

    Raises:
        PrepareError: an argument is impossible, or there are no images.
    """
    require_sizes(args)
    require_name(args.name)
    folder = f"unlabeled/{args.name}"
    paths = find_images(args.src, leave_out=args.out / folder)
    if not paths:
        raise PrepareError(
            f"no images below {args.src}{_what_is_there(args.src)}; expected a folder tree of files that "
            f"end in {', '.join(IMAGE_EXTENSIONS)}"
        )
    keys = [path.relative_to(args.src).as_posix() for path in paths]
    found = zip(keys, unique_stems(keys), paths, strict=True)
    names = ("src", "size", "overlap", "name", "min_size", "format")
    return Plan(
        command="unlabeled",
        out=args.out,
        folder=folder,
        parameters=plan_parameters("unlabeled", args, names),
        sources=[Source(key, "all", stem, path) for key, stem, path in found],
        cut=ImageCutter(args.out, folder, args.size, args.overlap, args.min_size, args.format),
        lists={f"splits/unlabeled/{args.name}.txt": ("all",)},
        keep_lost=True,
    )


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return " (no such folder)"
    endings = Counter(path.suffix.lower() or "no ending" for path in folder.rglob("*") if path.is_file())
    found = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6))
    return f" (found: {found or 'nothing'})"
