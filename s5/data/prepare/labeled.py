"""Folders of images and masks of one's own -> patches, and lists for training and validation."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from s5.data.datasets.base import TRAIN, VAL
from s5.data.datasets.shipped import Source
from s5.data.folders import hold_out, pair_folders
from s5.data.image_formats import is_tiff
from s5.data.image_io import image_size
from s5.data.label_table import LabelTable
from s5.data.labels import HELP, parse_table
from s5.data.mask_survey import refuse_together
from s5.data.masks import open_mask
from s5.data.prepare.patches import Window, unique_stems
from s5.data.prepare.pipeline import Plan, plan_parameters, require_name, require_sizes
from s5.data.prepare.segmentation import MaskCutter, add_sizes, add_val_size, require_val_size
from s5.data.splits import Sample, Split
from s5.errors import ImageError, PrepareError

SUMMARY = "your own folders of images and masks -> NAME, with lists for training"
_PIECE_ROWS = 4096  # of a large image, cut at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--images", dest="src", type=Path, required=True, help="folder of the images")
    add_sizes(parser, 512, 0)
    parser.add_argument("--name", required=True, help="name of the dataset: its folder is called so")
    add_val_size(parser, 2048)
    parser.add_argument("--masks", type=Path, required=True, help="folder of the masks, of the same names")
    parser.add_argument("--labels", required=True, metavar="TABLE", help=HELP)
    parser.add_argument(
        "--val-share", type=float, default=0.2, help="share held out for validation (default: 0.2)"
    )


def plan(args: argparse.Namespace) -> Plan:
    """Images and masks of the same names, of any size; GeoTIFFs are cut by windows.

    Whole images are held out for validation, chosen by their names; of a single image, its lower part.

    Raises:
        DataError: an argument is impossible, or images and masks do not belong together.
    """
    require_sizes(args)
    require_name(args.name)
    require_val_size(args)
    if not 0 < args.val_share < 1:
        raise PrepareError(f"--val-share lies between 0 and 1, got {args.val_share}")
    table = parse_table(args.labels, default_name=args.name)
    names = ("src", "size", "overlap", "name", "val_size", "masks", "labels", "val_share")
    return Plan(
        command="labeled",
        out=args.out,
        folder=args.name,
        # The table by its content, so that a changed YAML file counts.
        parameters={**plan_parameters("labeled", args, names), "labels": table.as_mapping()},
        sources=_sources(args, table),
        cut=MaskCutter(
            args.out, args.name, partial(open_mask, table=table), args.size, args.overlap, args.val_size
        ),
        lists={f"{args.name}/splits/{part}.txt": (part,) for part in (TRAIN, VAL)},
        usage=lambda: f"labels: {args.labels}",
    )


def _sources(args: argparse.Namespace, table: LabelTable) -> list[Source]:
    """Every pair, for training or held out; large images in several pieces."""
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
    """Part and sample of each pair; all of the image."""
    for group, split in zip((TRAIN, VAL), hold_out(pairs, val_share), strict=True):
        yield from ((group, sample, None) for sample in split)


def _divide_image(pairs: Split, val_share: float) -> Iterator[tuple[str, Sample, Window | None]]:
    """The upper part of a single image for training, the lower one for validation."""
    sample = pairs.sample(0)
    height, width = image_size(sample.image)
    line = height - round(height * val_share)
    if min(line, height - line) < 16:
        raise PrepareError(f"{sample.image}: one image of {height} rows is too small to be divided; add more")
    yield TRAIN, sample, Window(0, 0, line, width)
    yield VAL, sample, Window(line, 0, height - line, width)


def _pieces(sample: Sample, area: Window | None, size: int) -> Iterator[tuple[str, Window | None]]:
    """Areas to cut one by one, so that large TIFFs are cut in parallel and continued where it stopped."""
    try:
        whole = area or Window(0, 0, *image_size(sample.image))
    except ImageError:  # cutting it says so, and the others go on
        yield "", None
        return
    if not is_tiff(sample.image):  # each piece would decode all of it
        yield "", whole
        return
    rows = max(_PIECE_ROWS // size, 1) * size
    bottom = whole.top + whole.height
    tops = range(whole.top, max(bottom - rows // 2, whole.top + 1), rows)
    for top, end in zip(tops, (*tops[1:], bottom), strict=True):
        yield f"#{top}" if len(tops) > 1 else "", whole._replace(top=top, height=end - top)
