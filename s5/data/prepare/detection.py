"""Prepare datasets of oriented objects: full images or windows, with annotations as DOTA text.

Writes `NAME/PART/{images,annotations}` and `NAME/splits/PART.txt` with lines `image annotation`; for windows
also `NAME/PART/whole`, the labels of the full images.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from s5.data.datasets.base import Dataset
from s5.data.datasets.shipped import Shipped, Source
from s5.data.image_io import read_image, write_bytes, write_image
from s5.data.oriented.annotations import AnnotationReader, Objects, class_ids, write_objects
from s5.data.oriented.geometry import share_inside
from s5.data.oriented.merge import LARGEST_RATE, window_name
from s5.data.oriented.sources import pad_image, pad_valid
from s5.data.prepare.journal import Patch
from s5.data.prepare.patches import Readable, Window, open_image, windows
from s5.data.prepare.pipeline import Cut, Plan, plan_parameters, require_name, require_sizes
from s5.data.prepare.segmentation import add_options
from s5.errors import PrepareError

_WHOLE = 1 - 1e-6  # share of its area inside a window above which an object is not truncated


@dataclass(frozen=True)
class ObjectCutter:
    """Copy an image, or cut it into windows and assign the objects to them like mmrotate's tool.

    An object belongs to the windows that contain at least `iof` of its area. It is not clipped; its flag
    becomes 2 where the window truncates it, but a difficult object stays difficult (the tool writes 2). Parts
    of other objects are background. Windows without objects are kept, because training decides whether to use
    them, except those in which the image has no data. Images smaller than a window are padded at the right
    and bottom, as the tool does, so that all have the same scale. Nothing is resized: with rate 0.5, windows
    are twice as large.

    Attributes:
        out: Data root.
        folder: Folder of the dataset below the data root.
        classes: Names of the classes.
        size: Side of the windows in pixels; 0 copies the images unchanged.
        overlap: Pixels that neighbouring windows share.
        rates: Scales of the objects; the size and overlap of the windows are divided by them.
        iof: Share of an object's area that a window must contain.
        format: `png` or `jpg`.
    """

    out: Path
    folder: str
    classes: tuple[str, ...]
    size: int = 0
    overlap: int = 0
    rates: Sequence[float] = (1.0,)
    iof: float = 0.7
    format: str = "png"

    def __call__(self, source: Source) -> Cut:
        """Write the image or its windows at all scales, with their annotations.

        Raises:
            DataError: The image or the annotation cannot be used.
        """
        objects, note = (None, "") if source.mask is None else _read_noted(source.mask, self.classes)
        if not self.size:
            return self._copy(source, objects, note)
        with open_image(source.image) as image:
            note = "; ".join(filter(None, (image.note, note)))
            cut = list(self._windows(image.height, image.width))
            written = [self._write(source, size, window, image, objects) for size, window in cut]
        patches = tuple(patch for patch in written if patch is not None)
        if objects is not None:
            write_objects(self.out / self.beside(source)[0], objects, self.classes)
        return Cut(patches, note, without_data=len(cut) - len(patches))

    def _copy(self, source: Source, objects: Objects | None, note: str) -> Cut:
        read_image(source.image)  # a damaged file is reported here, not in training
        patch = self._patch(source.group, source.stem, source.image.suffix.lower(), objects is not None)
        if objects is not None:
            write_objects(self.out / str(patch.mask), objects, self.classes)
        write_bytes(self.out / patch.image, source.image.read_bytes())
        return Cut((patch,), note)

    def beside(self, source: Source) -> Sequence[str]:
        """Path of the labels of the full image, relative to the data root."""
        if source.mask is None or not self.size:
            return ()
        return (f"{self.folder}/{source.group}/whole/{source.stem}.txt",)

    def _windows(self, height: int, width: int) -> Iterator[tuple[int, Window]]:
        """Windows of an image with their nominal size."""
        for rate in self.rates:
            size = int(self.size / rate)
            for window in windows(height, width, size, int(self.overlap / rate)):
                yield size, window

    def _write(
        self, source: Source, size: int, window: Window, image: Readable, objects: Objects | None
    ) -> Patch | None:
        """Write a window and its objects; skips a window without any data, unless it has objects."""
        pixels, valid = image.read_with_valid(*window)
        inside, truncated = (None, None) if objects is None else _in_window(objects, window, self.iof)
        if valid is not None and not valid.any() and (inside is None or not len(inside.labels)):
            return None
        name = window_name(source.stem, size, window.left, window.top)
        suffix = f".{self.format}" if valid is None else ".png"
        patch = self._patch(source.group, name, suffix, objects is not None)
        if min(window.height, window.width) < size:
            pixels = pad_image(pixels, size)
            valid = None if valid is None else pad_valid(valid, size)
        write_image(self.out / patch.image, pixels, valid=valid)
        if inside is not None:
            write_objects(self.out / str(patch.mask), inside, self.classes, truncated)
        return patch

    def _patch(self, part: str, name: str, suffix: str, annotated: bool) -> Patch:
        """Output paths of an image of this name and of its annotation."""
        base = f"{self.folder}/{part}"
        return Patch(f"{base}/images/{name}{suffix}", f"{base}/annotations/{name}.txt" if annotated else None)


def _in_window(objects: Objects, window: Window, iof: float) -> tuple[Objects, np.ndarray]:
    """The objects of a window, in its pixels, and bool (n,), whether it truncates them."""
    top, left, height, width = window
    share = share_inside(objects.polygons, (left, top, left + width, top + height))
    kept = share >= iof
    inside = objects.select(kept)
    moved = inside.polygons - np.array([left, top], np.float32)
    return Objects(moved, inside.labels, inside.difficult), share[kept] < _WHOLE


def _read_noted(path: Path, classes: Sequence[str]) -> tuple[Objects, str]:
    """Objects of a file, and a note for the user about those that were skipped."""
    left_out: list[str] = []
    objects = AnnotationReader(classes).read(path, left_out)
    return objects, f"{len(left_out)} objects left out, the first: {left_out[0]}" if left_out else ""


def add_objects_arguments(parser: argparse.ArgumentParser, dataset: type[Dataset]) -> None:
    """Add the arguments of a dataset of oriented objects."""
    parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")
    parser.add_argument("--out", type=Path, required=True, help="data root to write to")
    help_text = f"folder below --out (default: {dataset.name}); one per variant"
    parser.add_argument("--name", default=dataset.name, help=help_text)
    add_options(parser, dataset.options)
    if not dataset.patch:
        # Not used, but recorded in the journals of earlier versions.
        parser.set_defaults(size=512, overlap=0, classes=())
        return
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="CLASS",
        help="of your own data (default: the version's)",
    )
    size, gap = dataset.patch, dataset.overlap
    parser.add_argument("--size", type=int, default=size, help=f"side of the windows (default: {size})")
    parser.add_argument(
        "--gap",
        dest="overlap",
        type=int,
        default=gap,
        help=f"pixels that neighbours share (default: {gap})",
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


def plan_objects(dataset: type[Dataset], args: argparse.Namespace) -> Plan:
    """Create the plan from the command line.

    Raises:
        DataError: An argument is invalid, or the dataset is missing or incomplete.
    """
    require_sizes(args)
    require_name(args.name)
    options = {name: getattr(args, name) for name in dataset.options}
    labels = ", ".join(args.classes) or dataset.class_list(**options)
    classes = tuple(args.classes) or dataset.class_lists[labels]
    class_ids(classes)
    cut = ObjectCutter(args.out, args.name, classes)
    names = ["src", "size", "overlap", "name", *options]
    more = {}
    if dataset.patch:
        _require_windows(args)
        windowed = ("size", "overlap", "rates", "iof", "format")
        cut = replace(cut, **{name: getattr(args, name) for name in windowed})
        names += ["classes", "rates", "iof", "format"]
        more = {"padded": True}  # journals of early versions lack the windows
    shipped = Shipped(args.src, dataset.title, dataset.layout, args.out / args.name)
    sources = dataset.find(shipped, **options)
    _require_own_names(sources)
    return Plan(
        command=dataset.name,
        out=args.out,
        folder=args.name,
        parameters=plan_parameters(dataset.name, args, names, **more),
        sources=sources,
        cut=cut,
        lists={dataset.split_file(split, args.name): parts for split, parts in dataset.splits.items()},
        optional=[dataset.split_file(split, args.name) for split in dataset.optional],
        beside=cut.beside,
        usage=lambda: _usage(dataset, args.out, args.name, labels),
    )


def _require_windows(args: argparse.Namespace) -> None:
    if len(set(args.rates)) < len(args.rates) or not all(0.1 <= rate <= 10 for rate in args.rates):
        raise PrepareError(f"--rates {list(args.rates)}: must be different numbers from 0.1 to 10")
    if args.size / max(args.rates) < LARGEST_RATE:
        raise PrepareError(f"--size {args.size} divided by the largest of --rates must be 16 or more")
    if not 0 < args.iof <= 1:
        raise PrepareError(f"--iof {args.iof}: must be above 0 and at most 1")


def _require_own_names(sources: Sequence[Source]) -> None:
    """Refuse images of a part whose output files would have the same name.

    Raises:
        PrepareError: Two images have the same output name.
    """
    found: dict[tuple[str, str], Source] = {}
    for source in (source for source in sources if source.image.exists()):
        other = found.setdefault((source.group, source.stem), source)
        if other is not source:
            raise PrepareError(
                f"{other.image} and {source.image} would be written to the same file; rename one of them"
            )


def _usage(dataset: type[Dataset], out: Path, folder: str, classes: str) -> str:
    """Configuration entries for the result: folders, split files and classes."""
    labeled, tests = [], []
    for part in dataset.splits:
        images, annotations = (f"{folder}/{part}/{kind}" for kind in ("images", "annotations"))
        names = dataset.split_file(part, folder)
        if not dataset.patch or (out / annotations).is_dir():
            labeled.append(f"{part}=dict(images='{images}', annotations='{annotations}', names='{names}')")
        elif (out / folder / part).is_dir():
            tests.append(
                f"{part}: {out / images}, without labels; in a configuration test=dict(images="
                f"'{images}', names='{names}', windows=True)"
            )
    return "\n".join([f"below data_root={str(out)!r}:", *labeled, f"classes: {classes}", *tests])
