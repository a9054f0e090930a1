"""Images inside other files: a window of an image, a member of an archive (docs/references.md).

    scenes/big.tif#xywh=512,0,512,512                 left, top, width and height in pixels
    pool.zip!/a/b.jpg                                 a member of a zip or an uncompressed tar
    pool.tar!/a/b.jpg#at=10240,5120&xywh=0,0,512,512  and where its header begins, and its size as stored

References stand in splits in place of paths. Nothing is unpacked; `at` saves reading the archive's directory.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Generic, NamedTuple, TypeVar

import numpy as np

from s5.data.archive_members import (
    DAMAGED,
    Directory,
    Member,
    Stored,
    Unusable,
    clean_name,
    entries,
    locate,
    members,
)
from s5.data.splits import REFERENCE
from s5.errors import ImageError

__all__ = ["Kept", "Member", "Reference", "Unusable", "Window", "members", "parse"]

_File = TypeVar("_File")


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of `array` (H, W, ...), as a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def name(self, stem: str) -> str:
        """Stem of the patch, `stem_top_bottom_left_right`, as the iSAID development kit names them."""
        return f"{stem}_{self.top}_{self.top + self.height}_{self.left}_{self.left + self.width}"

    def require_inside(self, height: int, width: int, path: str | Path) -> None:
        """Refuse a window that is empty or not inside an image of this size.

        Raises:
            ImageError: It is not.
        """
        bottom, right = self.top + self.height, self.left + self.width
        if not (0 <= self.top < bottom <= height and 0 <= self.left < right <= width):
            reason = f"the window is not inside the image of {height}x{width} (height x width)"
            raise ImageError(path, reason, "xywh is left, top, width and height; correct it")


class Reference(NamedTuple):
    """An image, or a part of one.

    Attributes:
        file: The image file, or the archive.
        member: Name in the archive, see `Member`; None for a file of its own.
        at: Offset of the member's header in the archive and its size as stored, in bytes; None if unknown.
        window: The part of the image; None for all of it.
    """

    file: str
    member: str | None = None
    at: tuple[int, int] | None = None
    window: Window | None = None

    def __str__(self) -> str:
        """The form that `parse` reads."""
        parts = []
        if self.at is not None:
            parts.append(f"at={self.at[0]},{self.at[1]}")
        if self.window is not None:
            top, left, height, width = self.window
            parts.append(f"xywh={left},{top},{width},{height}")
        member = "" if self.member is None else f"!/{self.member}"
        return f"{self.file}{member}{'#' if parts else ''}{'&'.join(parts)}"

    def stem(self) -> str:
        """Relative path without extension to name results by: `b`, `pool/a/b`, `b_0_512_0_512`."""
        path = PurePosixPath(Path(self.file).name)
        if self.member is not None:
            folders = (part for part in clean_name(self.member).split("/") if part != "..")
            path = PurePosixPath(path.stem, *folders)
        stem = str(path.with_suffix(""))
        return stem if self.window is None else self.window.name(stem)


class Kept(threading.local, Generic[_File]):
    """A few open files of a thread; those used least recently are closed.

    Files of the process that this one was forked from are closed, too: they share their position with it.

    Args:
        limit: Number of open files.
        close: Closes one.
    """

    def __init__(self, limit: int, close: Callable[[_File], None]) -> None:
        self._limit, self._close, self._process = limit, close, os.getpid()
        self._files: OrderedDict[object, _File] = OrderedDict()

    def get(self, key: object) -> _File | None:
        """The open file of a key, or None."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.clear()
        if key in self._files:
            self._files.move_to_end(key)
        return self._files.get(key)

    def put(self, key: object, file: _File) -> _File:
        """Keep a file, whose key `get` did not find."""
        self._files[key] = file
        self._shrink(self._limit)
        return file

    def clear(self) -> None:
        """Close all."""
        self._shrink(0)

    def __len__(self) -> int:
        return len(self._files)

    def _shrink(self, count: int) -> None:
        while len(self._files) > count:
            self._close(self._files.popitem(last=False)[1])


_ARCHIVES: Kept[BinaryIO] = Kept(16, lambda file: file.close())


def parse(text: str) -> Reference:
    """Parse the form of the module; a text of another form is the path of a file."""
    found = REFERENCE.fullmatch(text)
    if found is None or (found["at"] and not found["member"]):
        return Reference(text)
    at = (int(found["at"]), int(found["size"])) if found["at"] else None
    window = None
    if found["x"]:
        window = Window(*(int(found[name]) for name in ("y", "x", "h", "w")))
    return Reference(found["file"], found["member"], at, window)


def find(path: str | Path) -> Reference | None:
    """The reference in `path`; None for a plain path, and where a file has this very name."""
    text = str(path)
    if "#" not in text and "!/" not in text:
        return None
    reference = parse(text)
    plain = reference.member is None and reference.window is None
    return None if plain or os.path.exists(text) else reference


def exists(path: str | Path) -> bool:
    """Whether the file on disk that contains an image exists."""
    return file_of(path).exists()


def file_of(path: str | Path) -> Path:
    """The file on disk that contains an image."""
    reference = find(path)
    return Path(path if reference is None else reference.file)


def state_of(file: str) -> tuple[int, int]:
    """Modification time in nanoseconds and size of a file.

    Raises:
        ImageError: It is missing.
    """
    try:
        state = os.stat(file)
    except OSError as error:
        hint = "Check data_root and the split file"
        raise ImageError(file, f"cannot be opened ({error.strerror})", hint) from error
    return state.st_mtime_ns, state.st_size


def read_member(reference: Reference, first: int | None = None) -> bytes:
    """Contents of a member of an archive, or its first bytes.

    Raises:
        ImageError: There is no such member, it cannot be read, or the archive changed since `at` was noted.
    """
    return find_member(reference).read(str(reference), first)


def for_gdal(path: str | Path) -> str | Path | bytes:
    """What GDAL opens to read the file or member of an image: a name, or the bytes of a compressed member.

    Raises:
        ImageError: See `read_member`.
    """
    reference = find(path)
    if reference is None or reference.member is None:
        return path if reference is None else Path(reference.file)  # a str may be taken for a URL
    stored = find_member(reference)
    if stored.inflated is not None:
        return stored.read(str(path))
    return f"/vsisubfile/{stored.offset}_{stored.size},{reference.file}"


def find_member(reference: Reference) -> Stored:
    """Find a member of an archive, and check that its header is there.

    Returns:
        Its place in the open archive, to be read before another one is looked for.

    Raises:
        ImageError: See `read_member`.
    """
    if reference.member is None:
        raise ValueError(f"{reference}: not a member of an archive")
    key = (reference.file, *state_of(reference.file))
    if (file := _ARCHIVES.get(key)) is None:
        try:
            file = _ARCHIVES.put(key, open(reference.file, "rb"))  # noqa: SIM115
        except OSError as error:
            raise ImageError(reference.file, f"cannot be opened ({error.strerror})") from error
    path, name = str(reference), clean_name(reference.member)
    if reference.at is not None:
        found = locate(file, path, name, *reference.at)
        if found is None:
            raise ImageError(path, "the archive changed after it was indexed", "Run the index step again")
        return found
    with _READING:  # threads would read the same directory
        directory = _directory(*key)
    places = directory.find(name)
    for at, size in places:  # of several of this name, the last replaces the others
        if (found := locate(file, path, name, at, size)) is not None:
            return found
    if places:
        raise ImageError(path, *DAMAGED)
    problem = f" ({directory.problem})" if directory.problem else ""
    raise ImageError(path, f"the archive has no such member{problem}", "Check the split file")


_READING = threading.Lock()


@lru_cache(maxsize=64)
def _directory(archive: str, changed: int, size: int) -> Directory:
    return Directory(entries(archive))
