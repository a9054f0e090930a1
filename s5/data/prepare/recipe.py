"""What a dataset has to say to be prepared: a new one subclasses `Recipe` or `LabeledRecipe`."""

from __future__ import annotations

import argparse
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from s5.data.errors import ImageError, LabelError
from s5.data.image_io import write_image, write_mask
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.patches import Readable, ReadableMask, Window, open_image, windows


@dataclass(frozen=True)
class Source:
    """One file to cut.

    Attributes:
        key: what the journal calls it; unique and the same in every run.
        group: the split list its patches go to, a key of :meth:`Recipe.lists`.
        stem: path of its patches below the group's folder, without window and extension; unique in the group.
        image: the image file.
        mask: the mask file, where the dataset has labels.
        area: the part of the image to cut; all of it by default.
        problem: why it cannot be used, where that is known before it is opened: it is listed, not cut.
    """

    key: str
    group: str
    stem: str
    image: Path
    mask: Path | None = None
    area: Window | None = None
    problem: str = ""

    def __str__(self) -> str:
        return str(self.image)


class Cut(NamedTuple):
    """What one source file gave: its patches, what the user should know of it, and the patches left out.

    Attributes:
        patches: what was written.
        note: what the user should know of the source file; empty if nothing.
        without_data: patches that were not written, as the image has no data anywhere in them.
    """

    patches: tuple[Patch, ...]
    note: str = ""
    without_data: int = 0


@dataclass(frozen=True)
class Recipe(ABC):
    """How one dataset is found, cut and listed.

    Attributes:
        src: folder of the dataset as its provider ships it.
        out: data root; everything is written below it.
        size: side of the patches in pixels; 0 keeps images whole, where the dataset allows it.
        overlap: pixels that neighbouring patches share.
    """

    command: ClassVar[str]
    help: ClassVar[str]
    optional_groups: ClassVar[tuple[str, ...]] = ()  # no list is written when they have no samples
    lists_lost_sources: ClassVar[bool] = True  # patches of source files that are no longer there stay listed
    not_remembered: ClassVar[tuple[str, ...]] = ()  # fields that may differ when a run is continued
    half_overlap: ClassVar[bool] = False  # whether patches share half of their side by default
    may_stay_whole: ClassVar[bool] = False  # whether --size 0 is allowed

    src: Path
    out: Path
    size: int = 512
    overlap: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.may_stay_whole and self.size == self.overlap == 0:
            return
        if self.size < 16 or not 0 <= self.overlap < self.size:
            whole = "0 (whole images) or " if self.may_stay_whole else ""
            raise PrepareError(
                f"--size must be {whole}at least 16 and --overlap from 0 to below --size, "
                f"got {self.size} and {self.overlap}"
            )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Recipe:
        """The recipe of a command line; an overlap that was not given is half of the size.

        Raises:
            PrepareError: impossible numbers or names.
        """
        values = {field.name: getattr(args, field.name) for field in fields(cls)}
        if values["overlap"] is None:
            values["overlap"] = values["size"] // 2
        return cls(**values)

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
            PrepareError: the dataset is not there; says what was expected where and where to get it.
        """

    @abstractmethod
    def cut(self, source: Source) -> Cut:
        """Write the patches of one source file; runs in a worker process.

        Raises:
            DataError: the source cannot be used. It is reported, and the others go on.
        """

    def parameters(self) -> dict[str, Any]:
        """What the patches depend on; a journal with other parameters is refused."""
        names = [field.name for field in fields(self) if field.name not in ("out", *self.not_remembered)]
        values = {name: getattr(self, name) for name in names}
        paths = {name: str(value.absolute()) for name, value in values.items() if isinstance(value, Path)}
        return {"command": self.command, **values, **paths}

    def beside(self, source: Source) -> Sequence[str]:
        """Files of a source beside its patches, relative to the data root."""
        return ()

    def joint_lists(self) -> Mapping[str, Sequence[str]]:
        """Further split files, relative to ``out``, each with the groups whose samples it lists."""
        return {}

    def size_of(self, path: Path) -> int:
        """Bytes of a source file; 0 for one that cannot be read, of which :meth:`cut` says what is wrong."""
        try:
            return path.stat().st_size
        except OSError:
            return 0

    def local(self, path: Path) -> AbstractContextManager[Path]:
        """A source file as a file on disk, for as long as the context lasts."""
        return nullcontext(path)

    def provide(self, sources: Sequence[Source]) -> AbstractContextManager[None]:
        """Make these ready to be cut by worker processes, and tidy up when all are."""
        return nullcontext()

    def usage(self) -> str:
        """What the user has to know to train on the result, beside the split files; may be empty."""
        return ""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments; their names are those of the recipe's fields."""
        cls.add_source(parser)
        parser.add_argument("--out", type=Path, required=True, help="data root to write to")
        size = f"default: {cls.size}" if cls.size else "default: 0, whole images"
        parser.add_argument("--size", type=int, default=cls.size, help=f"side of the patches ({size})")
        half = cls.half_overlap
        parser.add_argument(
            "--overlap",
            type=int,
            default=None if half else 0,
            help=f"pixels neighbours share (default: {'half of --size' if half else 0})",
        )

    @classmethod
    def add_source(cls, parser: argparse.ArgumentParser) -> None:
        """Add the argument that says where the data are."""
        parser.add_argument("--src", type=Path, required=True, help="folder of the data as shipped")


def require_name(name: str) -> None:
    """Refuse a name that cannot be a folder.

    Raises:
        PrepareError: the name has other characters than letters, digits, '_', '-' and '.'.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise PrepareError(f"--name must consist of letters, digits, '_', '-' and '.', got {name!r}")


class LabeledRecipe(Recipe):
    """A dataset of images with masks: ``folder/group/{images,masks}/stem_window.png``."""

    @abstractmethod
    def mask(self, path: Path) -> AbstractContextManager[ReadableMask]:
        """Open a mask for cutting, in the raw values of its label table."""

    def cut(self, source: Source) -> Cut:
        """Cut image and mask along the same windows."""
        if source.mask is None:
            raise LabelError(f"{source.image}: no mask found for it")
        with self.image(source.image) as image, self.mask(source.mask) as mask:
            if (mask.height, mask.width) != (image.height, image.width):
                raise ImageError(
                    source.mask,
                    f"mask of {mask.height}x{mask.width} pixels for an image of "
                    f"{image.height}x{image.width} (height x width), {source.image}",
                )
            patches, without_data = [], 0
            for name, window in self.windows(source, image.height, image.width):
                pixels, valid = image.read_with_valid(*window)
                if valid is not None and not valid.any():
                    without_data += 1
                    continue
                patch = self.patch(source, name)
                write_image(self.out / patch.image, pixels, valid=valid)  # without data, labels do not count
                write_mask(self.out / str(patch.mask), mask.read(*window))
                patches.append(patch)
            note = "; ".join(filter(None, (image.note, mask.note)))
            return Cut(tuple(patches), note, without_data)

    def windows(self, source: Source, height: int, width: int) -> Iterable[tuple[str, Window]]:
        """The windows to cut of an image, with the names of the patches."""
        cut = windows(height, width, self.size, self.overlap)
        return ((window.name(source.stem), window) for window in cut)

    def patch(self, source: Source, name: str) -> Patch:
        """Where the patch of this name is written."""
        base = f"{self.folder}/{source.group}"
        return Patch(f"{base}/images/{name}.png", f"{base}/masks/{name}.png")

    def image(self, path: Path) -> AbstractContextManager[Readable]:
        """Open an image for cutting."""
        return open_image(path)
