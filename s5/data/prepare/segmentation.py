"""Prepare datasets with masks: arguments, cutting of an image, and the plan for a shipped dataset."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from s5.data.datasets.archives import Archives
from s5.data.datasets.base import TEST, TRAIN, VAL, Dataset
from s5.data.datasets.prepared import JOURNAL_NAME
from s5.data.datasets.shipped import Shipped, Source
from s5.data.image_io import write_bytes, write_image, write_mask
from s5.data.masks import require_same_size
from s5.data.prepare.journal import Patch
from s5.data.prepare.patches import (
    Decoded,
    ReadableMask,
    Window,
    open_image,
    plain_file,
    tiles,
    windows,
)
from s5.data.prepare.pipeline import Cut, Plan, plan_parameters, require_name, require_sizes
from s5.errors import LabelError, PrepareError

OpenMask = Callable[[Path], AbstractContextManager[ReadableMask]]


@dataclass(frozen=True)
class MaskCutter:
    """Cut an image and its mask along the same windows: `folder/group/{images,masks}/stem_window.png`.

    Images of other parts than `cut_parts`, and all images if `size` is 0, are not cut, so that they can be
    predicted in full or with sliding windows and every pixel counts once; images larger than `val_size` are
    divided into parts without overlap. Test images without masks are copied.

    Attributes:
        out: Data root.
        folder: Folder of the dataset below the data root.
        open_mask: Opens a mask as raw values of its label table.
        size: Side of the patches in pixels.
        overlap: Pixels that neighbouring patches share.
        val_size: Largest side of validation images in pixels; 0 means no limit.
        cut_parts: Groups whose images are cut into patches.
        archives: Reader of files in archives.
    """

    out: Path
    folder: str
    open_mask: OpenMask
    size: int
    overlap: int
    val_size: int = 0
    cut_parts: tuple[str, ...] = (TRAIN,)
    archives: Archives | None = None

    def __call__(self, source: Source) -> Cut:
        """Write the patches of one image.

        Raises:
            DataError: The image or the mask cannot be used.
        """
        if source.mask is None:
            if source.group == TEST:
                return self._copy(source)
            raise LabelError(f"{source.image}: no mask found for it")
        with (
            _local(source.image, self.archives) as file,
            open_image(file) as image,
            self.open_mask(source.mask) as mask,
        ):
            mask_size, size = (mask.height, mask.width), (image.height, image.width)
            require_same_size(source.mask, mask_size, source.image, size)
            patches, without_data = [], 0
            for name, window in self.windows(source, image.height, image.width):
                pixels, valid = image.read_with_valid(*window)
                if valid is not None and not valid.any():
                    without_data += 1
                    continue
                base = f"{self.folder}/{source.group}"
                patch = Patch(f"{base}/images/{name}.png", f"{base}/masks/{name}.png")
                # Readers ignore labels where the image has no data.
                write_image(self.out / patch.image, pixels, valid=valid)
                write_mask(self.out / str(patch.mask), mask.read(*window))
                patches.append(patch)
            note = "; ".join(filter(None, (image.note, mask.note)))
            return Cut(tuple(patches), note, without_data)

    def windows(self, source: Source, height: int, width: int) -> Iterator[tuple[str, Window]]:
        """The windows of an image, with the names of the patches."""
        area = Window(*source.area) if source.area else Window(0, 0, height, width)
        patches = source.group in self.cut_parts and self.size > 0
        if patches:
            cut = windows(area.height, area.width, self.size, self.overlap)
        else:
            largest = self.val_size if source.group != TRAIN else 0
            cut = tiles(area.height, area.width, largest or max(area.height, area.width))
        for part in cut:
            window = part._replace(top=part.top + area.top, left=part.left + area.left)
            whole = not patches and window == (0, 0, height, width)
            yield source.stem if whole else window.name(source.stem), window

    def _copy(self, source: Source) -> Cut:
        base = f"{self.folder}/{source.group}/images/{source.stem}"
        # Opened even if it is copied, so that a damaged file is detected here.
        with _local(source.image, self.archives) as file, open_image(file) as image:
            plain = plain_file(file)
            if plain is None:
                patch = Patch(f"{base}.png")
                pixels, valid = image.read_with_valid(0, 0, image.height, image.width)
                write_image(self.out / patch.image, pixels, valid=valid)
            else:
                suffix, data = plain
                patch = Patch(f"{base}{suffix}")
                write_bytes(self.out / patch.image, data)
            return Cut((patch,), image.note)


def add_sizes(parser: argparse.ArgumentParser, size: int, overlap: int | None) -> None:
    """Add the options for the data root and the patch size; an overlap of None means half the size."""
    parser.add_argument("--out", type=Path, required=True, help="data root to write to")
    default = f"default: {size}" if size else "default: 0, whole images"
    parser.add_argument("--size", type=int, default=size, help=f"side of the patches ({default})")
    half = "half of --size" if overlap is None else overlap
    parser.add_argument(
        "--overlap", type=int, default=overlap, help=f"pixels neighbours share (default: {half})"
    )


def add_val_size(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the option for the largest size of validation images."""
    parser.add_argument(
        "--val-size",
        type=int,
        default=default,
        help=f"divide validation images larger than this, in pixels; 0 keeps all whole (default: {default})",
    )


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the options of a dataset."""
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)


def add_dataset_arguments(parser: argparse.ArgumentParser, dataset: type[Dataset]) -> None:
    """Add the arguments of a dataset with masks."""
    parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")
    add_sizes(parser, dataset.patch, dataset.overlap)
    if not dataset.folder:
        help_text = f"folder below --out (default: {dataset.name}); one per variant"
        parser.add_argument("--name", default=dataset.name, help=help_text)
    if VAL not in dataset.cut_parts:
        add_val_size(parser, 0)
    if dataset.inner_archives is not None:
        parser.add_argument(
            "--partial", action="store_true", help="take what is there of a dataset that is not complete"
        )
    add_options(parser, dataset.options)


def dataset_cutter(dataset: type[Dataset], args: argparse.Namespace) -> MaskCutter:
    """Create the function that cuts the images of a dataset.

    Raises:
        PrepareError: An argument is invalid.
    """
    if args.overlap is None:
        args.overlap = args.size // 2
    require_sizes(args, may_stay_whole=dataset.patch == 0)
    folder = dataset.folder or args.name
    if not dataset.folder:
        require_name(args.name)
    if VAL not in dataset.cut_parts:
        require_val_size(args)
    archives = None
    if dataset.inner_archives is not None:
        archives = Archives(args.out / folder / ".archives", dataset.inner_archives)
    return MaskCutter(
        out=args.out,
        folder=folder,
        open_mask=partial(open_shipped_mask, dataset, archives),
        size=args.size,
        overlap=args.overlap,
        val_size=getattr(args, "val_size", 0),
        cut_parts=dataset.cut_parts,
        archives=archives,
    )


def plan_dataset(dataset: type[Dataset], args: argparse.Namespace) -> Plan:
    """Create the plan from the command line.

    Raises:
        PrepareError: An argument is invalid, or the dataset is missing or incomplete.
    """
    cutter = dataset_cutter(dataset, args)
    folder = args.out / cutter.folder
    shipped = Shipped(
        src=args.src,
        title=dataset.title,
        layout=dataset.layout,
        folder=folder,
        archives=cutter.archives,
        partial=getattr(args, "partial", False),
    )
    if args.src.resolve() == folder.resolve() and not (folder / JOURNAL_NAME).exists():
        raise PrepareError(
            f"--src {args.src}: the prepared dataset would be written into it; choose another --out or --name"
        )
    names = [name for name in ("src", "size", "overlap", "name", "val_size") if hasattr(args, name)]
    names += [name for name in dataset.options if name not in dataset.not_remembered]
    return Plan(
        command=dataset.name,
        out=args.out,
        folder=cutter.folder,
        parameters=plan_parameters(dataset.name, args, names),
        facts=dataset.mask_facts(),
        sources=dataset.find(shipped, **{name: getattr(args, name) for name in dataset.options}),
        cut=cutter,
        lists={dataset.split_file(split, cutter.folder): parts for split, parts in dataset.splits.items()},
        optional=[dataset.split_file(s, cutter.folder) for s in dataset.optional if s in dataset.splits],
        keep_lost=dataset.keep_lost,
        archives=cutter.archives,
        usage=lambda: dataset.usage,
    )


def require_val_size(args: argparse.Namespace) -> None:
    """Check the size of validation images.

    Raises:
        PrepareError: The size is too small.
    """
    if args.val_size and args.val_size < 16:
        raise PrepareError(f"--val-size must be 0 (whole images) or at least 16, got {args.val_size}")


@contextmanager
def open_shipped_mask(dataset: type[Dataset], archives: Archives | None, path: Path) -> Iterator[Decoded]:
    """Decode a mask of a known dataset."""
    with _local(path, archives) as file:
        mask, note = dataset.read_mask(file, path)
    yield Decoded(mask, note)


def _local(path: Path, archives: Archives | None) -> AbstractContextManager[Path]:
    """The file itself, or a copy if it is in an archive."""
    return archives.local(path) if archives else nullcontext(path)
