"""Cut a user's own folders into patches with split files: images with masks, or unlabeled images."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from s5.data.datasets.base import TRAIN, VAL
from s5.data.datasets.shipped import Source
from s5.data.files import write_bytes
from s5.data.folders import find_images, hold_out, pair_folders
from s5.data.image_formats import is_tiff
from s5.data.image_io import image_size, write_image
from s5.data.label_table import LabelTable
from s5.data.labels import HELP, parse_table
from s5.data.mask_survey import refuse_together
from s5.data.masks import open_mask
from s5.data.prepare.journal import Patch
from s5.data.prepare.patches import Readable, Window, open_image, plain_file, unique_stems, windows
from s5.data.prepare.pipeline import Cut, Plan, plan_parameters, require_name, require_sizes
from s5.data.prepare.segmentation import MaskCutter, add_sizes, add_val_size, require_val_size
from s5.data.splits import IMAGE_EXTENSIONS, Sample, Split
from s5.errors import ImageError, PrepareError

LABELED = "your own folders of images and masks -> NAME, with lists for training"
_PIECE_ROWS = 4096  # of a large image, cut at a time
UNLABELED = "any folder tree of images -> unlabeled/NAME, with a list for training"


def add_labeled_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `labeled`."""
    parser.add_argument("--images", dest="src", type=Path, required=True, help="folder of the images")
    add_sizes(parser, 512, 0)
    parser.add_argument("--name", required=True, help="name of the dataset and of its folder")
    add_val_size(parser, 2048)
    parser.add_argument("--masks", type=Path, required=True, help="folder of the masks, named as the images")
    parser.add_argument("--labels", required=True, metavar="TABLE", help=HELP)
    parser.add_argument(
        "--val-share", type=float, default=0.2, help="share held out for validation (default: 0.2)"
    )


def plan_labeled(args: argparse.Namespace) -> Plan:
    """Plan to cut images of any size and masks with the same names; GeoTIFFs are read by windows.

    Full images, selected by their names, are held out for validation; if there is only one image, its lower
    part is.

    Raises:
        DataError: An argument is invalid, or images and masks do not match.
    """
    require_sizes(args)
    require_name(args.name)
    require_val_size(args)
    if not 0 < args.val_share < 1:
        raise PrepareError(f"--val-share {args.val_share}: must be between 0 and 1")
    table = parse_table(args.labels, default_name=args.name)
    names = ("src", "size", "overlap", "name", "val_size", "masks", "labels", "val_share")
    return Plan(
        command="labeled",
        out=args.out,
        folder=args.name,
        # The contents of the table, so that changes of the YAML file are detected.
        parameters={**plan_parameters("labeled", args, names), "labels": table.as_mapping()},
        sources=_pairs(args, table),
        cut=MaskCutter(
            args.out, args.name, partial(open_mask, table=table), args.size, args.overlap, args.val_size
        ),
        lists={f"{args.name}/splits/{part}.txt": (part,) for part in (TRAIN, VAL)},
        usage=lambda: f"labels: {args.labels}",
    )


def _pairs(args: argparse.Namespace, table: LabelTable) -> list[Source]:
    """Every pair with its part, training or validation; large images are divided into pieces."""
    src = args.src.absolute()
    pairs = pair_folders(src, args.masks.absolute(), src)
    stems = dict(zip(names := [s.name for s in pairs], unique_stems(names), strict=True))
    refused = refuse_together([s.mask for s in pairs if s.mask is not None], table)
    divide = _divide_image if len(pairs) == 1 else _divide_images
    return [
        Source(
            f"{group}/{sample.name}{mark}",
            group,
            stems[sample.name],
            sample.image,
            sample.mask,
            area,
            refused.get(str(sample.mask), ""),
        )
        for group, sample, whole in divide(pairs, args.val_share)
        for mark, area in _pieces(sample, whole, args.size)
    ]


def _divide_images(pairs: Split, val_share: float) -> Iterator[tuple[str, Sample, Window | None]]:
    """Part and sample of each pair; an area of None is the full image."""
    for group, split in zip((TRAIN, VAL), hold_out(pairs, val_share), strict=True):
        yield from ((group, sample, None) for sample in split)


def _divide_image(pairs: Split, val_share: float) -> Iterator[tuple[str, Sample, Window | None]]:
    """The upper part of a single image for training, the lower one for validation."""
    sample = pairs.sample(0)
    height, width = image_size(sample.image)
    line = height - round(height * val_share)
    if min(line, height - line) < 16:
        raise PrepareError(
            f"{sample.image}: a single image of {height} rows is too small to be divided into training and "
            "validation; add images"
        )
    yield TRAIN, sample, Window(0, 0, line, width)
    yield VAL, sample, Window(line, 0, height - line, width)


def _pieces(sample: Sample, area: Window | None, size: int) -> Iterator[tuple[str, Window | None]]:
    """Areas to cut separately, so that large TIFFs are cut in parallel and interrupted runs can continue."""
    try:
        whole = area or Window(0, 0, *image_size(sample.image))
    except ImageError:  # reported when it is cut, without ending the run
        yield "", None
        return
    if not is_tiff(sample.image):  # each piece would decode the full image
        yield "", whole
        return
    rows = max(_PIECE_ROWS // size, 1) * size
    bottom = whole.top + whole.height
    tops = range(whole.top, max(bottom - rows // 2, whole.top + 1), rows)
    for top, end in zip(tops, (*tops[1:], bottom), strict=True):
        yield f"#{top}" if len(tops) > 1 else "", whole._replace(top=top, height=end - top)


@dataclass(frozen=True)
class ImageCutter:
    """Copy or cut an image to `folder`, keeping the folders of the source tree.

    An image that fits into a patch and is plain 8-bit RGB JPEG or PNG is copied byte for byte; all others are
    cut and re-encoded. Patches without any data are skipped.

    Attributes:
        out: Data root.
        folder: Folder of the pool below the data root.
        size: Side of the patches in pixels.
        overlap: Pixels that neighbouring patches share.
        min_size: Images with a side below this many pixels are skipped.
        format: `jpg` (quality 95) or `png`; patches partly without data are PNG, transparent there.
    """

    out: Path
    folder: str
    size: int
    overlap: int = 0
    min_size: int = 32
    format: str = "jpg"

    def __call__(self, source: Source) -> Cut:
        """Write the patches of one image; an image that is too small is skipped.

        Raises:
            ImageError: The image cannot be read.
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
        """Write a patch, with an alpha channel if parts have no data; skips a patch without any data."""
        if valid is not None and not valid.any():
            return None
        patch = Patch(f"{self.folder}/{name}.{self.format if valid is None else 'png'}")
        write_image(self.out / patch.image, pixels, valid=valid)
        return patch


def _without_empty(patches: Sequence[Patch | None], note: str) -> Cut:
    written = tuple(patch for patch in patches if patch is not None)
    return Cut(written, note, without_data=len(patches) - len(written))


def add_unlabeled_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `unlabeled`."""
    parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")
    add_sizes(parser, 512, 0)
    parser.add_argument("--name", required=True, help="name of the pool, its folder and its list")
    parser.add_argument(
        "--min-size", type=int, default=32, help="leave out images with a side below this (default: 32)"
    )
    parser.add_argument(
        "--format",
        choices=("jpg", "png"),
        default="jpg",
        help="format of cut patches (default: jpg)",
    )


def plan_unlabeled(args: argparse.Namespace) -> Plan:
    """Plan to cut every image below `--src`, in the order of the paths.

    Raises:
        PrepareError: An argument is invalid, or there are no images.
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
