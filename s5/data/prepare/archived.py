"""Datasets that come as archives: found in folders and archives alike, and required to be complete."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s5.data.image_io import read_mask
from s5.data.prepare.archives import Archives
from s5.data.prepare.dataset import DatasetRecipe
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.patches import Decoded, Readable, ReadableMask, open_image
from s5.data.prepare.recipe import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchivedRecipe(DatasetRecipe):
    """A dataset whose files lie in folders, in archives, or in archives inside archives.

    Attributes:
        partial: take what is there instead of refusing a dataset that is not complete.
    """

    title: ClassVar[str]
    inner_archives: ClassVar[str] = ".*"  # names of inner archives that are looked into, in lower case
    layout: ClassVar[str]  # what is expected below the source folder, and where to get it
    not_remembered: ClassVar[tuple[str, ...]] = ("partial",)
    half_overlap: ClassVar[bool] = True  # as published

    overlap: int = 256
    partial: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Whether an incomplete dataset is good enough, beside the common ones."""
        super().add_arguments(parser)
        parser.add_argument(
            "--partial", action="store_true", help="take what is there of a dataset that is not complete"
        )

    @property
    def archives(self) -> Archives:
        """The archives below the source folder."""
        return Archives(self.out / self.folder / ".archives", self.inner_archives)

    def shipped(self) -> list[tuple[str, Path]]:
        """Every file, with its place from the source folder on in lower case, the best copy of a file first.

        Raises:
            PrepareError: the source folder does not exist.
        """
        if not self.src.exists():
            raise PrepareError(f"{self.src}: no such folder or archive.\n{self._expected()}")
        files = self.archives.files(self.src)
        # What is unpacked already is read faster; a shorter path is rather the original than a copy.
        files.sort(key=lambda path: (not path.is_file(), len(path.parts), path))
        return [(path.relative_to(self.src.parent).as_posix().lower(), path) for path in files]

    def require(self, problems: Sequence[str]) -> None:
        """Refuse a dataset with these problems, or only log them where a part is good enough.

        Raises:
            PrepareError: says what is missing, what is expected, and where to get it.
        """
        if not problems:
            return
        text = "\n".join([f"{self.title} below {self.src} is not complete:", *(f"  {p}" for p in problems)])
        if not self.partial:
            raise PrepareError(f"{text}\n{self._expected()}\n--partial takes what is there")
        logger.warning("%s", text)

    def size_of(self, path: Path) -> int:
        """Bytes of a source file, in an archive or not."""
        return self.archives.size(path)

    @contextmanager
    def provide(self, sources: Sequence[Source]) -> Iterator[None]:
        """Copy inner archives out while files of them are needed."""
        self.archives.provide(path for s in sources for path in (s.image, s.mask) if path is not None)
        yield
        self.archives.clear()

    def local(self, path: Path) -> AbstractContextManager[Path]:
        """The file itself, or a copy of the one in an archive."""
        return self.archives.local(path)

    @contextmanager
    def image(self, path: Path) -> Iterator[Readable]:
        """Open an image for cutting."""
        with self.local(path) as file, open_image(file) as image:
            yield image

    def mask(self, path: Path) -> AbstractContextManager[ReadableMask]:
        """Decode a mask for cutting."""
        return nullcontext(self.decode_mask(path))

    def decode_mask(self, path: Path) -> Decoded:
        """The whole mask in raw values; here an index mask as it is.

        Raises:
            LabelError: a value is outside the table.
        """
        with self.local(path) as file:
            mask = read_mask(file)
        self.table.encode(mask, path)
        return Decoded(mask)

    def _expected(self) -> str:
        return self.layout.format(src=self.src)


def listed(names: Sequence[str], show: int = 40) -> str:
    """Names in one line, the rest as a number."""
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more
