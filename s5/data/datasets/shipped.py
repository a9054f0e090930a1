"""Find and pair the files of a dataset as its provider ships them, and check that they are complete."""

import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from s5.data.datasets.archives import Archives
from s5.data.datasets.prepared import JOURNAL_NAME
from s5.data.folders import find_files
from s5.data.splits import read_list
from s5.errors import PrepareError

logger = logging.getLogger(__name__)

_SHOWN = 8  # archives in a message


@dataclass(frozen=True)
class Source:
    """One image with its labels.

    Attributes:
        key: Key in the journal of the preparation; unique and the same in every run.
        group: Part of the dataset.
        stem: Path of the patches below the group's folder, without window and extension; unique in the group.
        image: The image file.
        mask: The mask or annotation file; None where the part has no labels.
        area: Top, left, height and width of the part of the image to cut; by default the full image.
        problem: Why the image cannot be used, if known before opening it; such images are reported, not cut.
    """

    key: str
    group: str
    stem: str
    image: Path
    mask: Path | None = None
    area: tuple[int, int, int, int] | None = None
    problem: str = ""

    def __str__(self) -> str:
        return str(self.image)


@dataclass(frozen=True)
class Shipped:
    """The folder (or archive) of a dataset as its provider ships it.

    Attributes:
        src: The folder or archive.
        title: Name of the dataset in messages.
        layout: Expected contents of `{src}`, and where to download them.
        folder: Folder of the prepared dataset, which is not searched; None if nothing may be written.
        archives: Reader of files in archives; None to search only folders.
        partial: Accept an incomplete dataset.
    """

    src: Path
    title: str
    layout: str
    folder: Path | None = None
    archives: Archives | None = None
    partial: bool = False

    @property
    def expected(self) -> str:
        """Expected contents of the folder, and where to download them."""
        return self.layout.format(src=self.src)

    def files(self) -> list[tuple[str, Path]]:
        """Every file with its lower-case path relative to the source folder, the best copy of a file first.

        Folders written by a preparation are skipped.

        Raises:
            PrepareError: The source folder does not exist.
        """
        if not self.src.exists():
            raise PrepareError(f"{self.src}: no such folder or archive.\n{self.expected}")
        files = self.archives.files(self.src) if self.archives else find_files(self.src, self.folder)
        prepared = {path.parent for path in files if path.name == JOURNAL_NAME} - {self.src}
        if prepared:
            files = [path for path in files if prepared.isdisjoint(path.parents)]
        # Unpacked files are faster to read; the shorter path is more likely the original.
        files.sort(key=lambda path: (not path.is_file(), len(path.parts), path))
        return [(path.relative_to(self.src.parent).as_posix().lower(), path) for path in files]

    def match(self, pattern: str) -> dict[tuple[str, ...], Path]:
        """The files whose path, starting at any of its folders, matches a pattern; the best of any copies.

        Args:
            pattern: Regular expression such as `(train|val)/(images|masks)/([^/]+).png`; case is ignored.

        Returns:
            Paths by the groups of the pattern, in lower case, the best copy of a file first.

        Raises:
            PrepareError: The source folder does not exist.
        """
        found: dict[tuple[str, ...], Path] = {}
        anchored = re.compile(rf"(?:.*/)?(?:{pattern})", re.IGNORECASE)
        for relative, path in self.files():
            if match := anchored.fullmatch(relative):
                found.setdefault(match.groups(""), path)
        return found

    def local(self, path: Path) -> AbstractContextManager[Path]:
        """The file itself, or a temporary copy of the one in an archive."""
        return self.archives.local(path) if self.archives else nullcontext(path)

    def read_text(self, path: Path) -> str:
        """Contents of a text file, in an archive or not."""
        with self.local(path) as file:
            return read_list(file).decode("utf-8-sig", "surrogateescape")

    def require(self, problems: Sequence[str]) -> None:
        """Refuse a dataset with these problems, or only log them if an incomplete one is accepted.

        Raises:
            PrepareError: The message says what is missing, what is expected, and where to download it.
        """
        if not problems:
            return
        text = "\n".join([f"{self.title} below {self.src} is not complete:", *(f"  {p}" for p in problems)])
        if not self.partial:
            raise PrepareError(f"{text}\n{self.expected}\n--partial accepts an incomplete dataset")
        logger.warning("%s", text)

    def incomplete(self, *problems: str) -> PrepareError:
        """The error for a dataset that cannot be used, with the archives that must be unpacked first."""
        lines = [f"{self.title} below {self.src} is not complete: {problems[0]}", *problems[1:]]
        zips = [str(path.relative_to(self.src)) for path in sorted(self.src.rglob("*.zip"))]
        if zips:
            lines.append(f"There are archives to unpack first: {', '.join(zips[:_SHOWN])}")
        return PrepareError("\n".join([*lines, self.expected]))


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without extension.

    Raises:
        PrepareError: Two files have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise PrepareError(f"{other} and {path} have the same name; keep one of them")
    return found


def safe_name(text: str) -> str:
    """Make `text` safe for file names in split lines, which are UTF-8 and separated by white space.

    White space becomes an underscore; bytes that are not UTF-8 become two hexadecimal digits.
    """
    text = re.sub("[\udc80-\udcff]", lambda match: f"{ord(match[0]) - 0xDC00:02X}", text)
    return re.sub(r"\s+", "_", text)
