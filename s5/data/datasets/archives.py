"""Read zip archives, also nested ones, as if they were folders.

A file in an archive is named by a path that goes through it, such as
`/data/Potsdam.zip/2_Ortho_RGB.zip/2_Ortho_RGB/top_potsdam_2_10_RGB.tif`. Nothing is unpacked in full:
each file is extracted only while it is needed. A nested archive cannot be read directly; it is extracted
while its files are needed, and its table of contents is cached.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from s5.data.files import write_bytes
from s5.data.folders import find_files, is_system_name
from s5.errors import DataError, ImageError, PrepareError

logger = logging.getLogger(__name__)

_ERRORS = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_AGAIN = "Download it again; unpacking it by hand and giving the folder works as well"


@dataclass(frozen=True)
class Archives:
    """The archives of one dataset.

    Attributes:
        store: Folder for extracted files; everything in it except the tables of contents is temporary.
        inner: Regular expression for the lower-case names of the nested archives to read.
    """

    store: Path
    inner: str = ".*"

    def files(self, src: Path) -> list[Path]:
        """All files below `src`, a folder or an archive, including those in archives but no hidden files.

        A damaged archive is skipped with a warning: it may not be needed.
        """
        found = [src] if src.is_file() else find_files(src, leave_out=self.store)
        return [path for file in found for path in (file, *self._inside(file))]

    def size(self, path: Path) -> int:
        """Size in bytes of a file, in an archive or not; 0 if it does not exist."""
        if path.is_file():
            return path.stat().st_size
        location = self._locate(path)
        return self._contents(location[0]).get(location[1], ("", 0))[1] if location else 0

    @contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """The file itself, or a temporary copy of the one in an archive.

        Raises:
            ImageError: There is no such file, or its archive is damaged.
        """
        location = None if path.exists() else self._locate(path)
        if location is None:
            yield path
            return
        archive, member = location
        name, _ = self._contents(archive).get(member, ("", 0))
        if not name:
            raise ImageError(path, "file not found in the archive")
        self.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.store, prefix="copy-") as folder:
            copy = Path(folder, path.name)
            try:
                with _open(self._real(archive)).open(name) as packed, copy.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            except _ERRORS as error:
                raise ImageError(path, f"damaged archive ({error})", _AGAIN) from error
            try:
                yield copy
            except ImageError as error:
                if error.path != str(copy):
                    raise
                raise ImageError(path, error.reason, error.hint) from error

    def provide(self, paths: Iterable[Path]) -> None:
        """Extract the nested archives that contain these files, so that worker processes find them."""
        for archive in sorted({location[0] for path in paths if (location := self._locate(path))}):
            self._real(archive)

    def clear(self) -> None:
        """Remove the extracted files."""
        for path in self.store.glob("*") if self.store.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".json":
                path.unlink()

    def _inside(self, archive: Path) -> Iterator[Path]:
        """The files in an archive and in the archives nested in it."""
        if archive.suffix.lower() != ".zip":
            return
        try:
            contents = self._contents(archive)
        except DataError as error:
            logger.warning("%s", error)
            return
        for member in contents:
            path = archive / member
            if path.suffix.lower() != ".zip":
                yield path
            elif re.fullmatch(self.inner, path.name.lower()):
                yield from self._inside(path)

    def _locate(self, path: Path) -> tuple[Path, str] | None:
        """Innermost archive that contains a file, and the file's path in it; None if it is in no archive."""
        for parent in path.parents:
            if parent.suffix.lower() == ".zip" and not parent.is_dir():
                return (parent, path.relative_to(parent).as_posix()) if self._is_archive(parent) else None
        return None

    def _is_archive(self, path: Path) -> bool:
        location = None if path.is_file() else self._locate(path)
        return path.is_file() or (location is not None and location[1] in self._contents(location[0]))

    def _contents(self, archive: Path) -> Mapping[str, tuple[str, int]]:
        """Stored name and size in bytes, by the path in the archive."""
        if archive.is_file():
            return _table_of_contents(archive, archive)
        return _remembered(self._copy(archive).with_suffix(".json")) or self._copied_contents(archive)

    def _copied_contents(self, archive: Path) -> Mapping[str, tuple[str, int]]:
        copy = self._real(archive)
        contents = _table_of_contents(copy, archive)
        write_bytes(copy.with_suffix(".json"), json.dumps(contents).encode())
        return contents

    def _real(self, archive: Path) -> Path:
        """The archive as a file on disk; a nested one is extracted."""
        if archive.is_file():
            return archive
        copy = self._copy(archive)
        if not copy.is_file():
            logger.info("copying %s out of its archive (%.1f GB)", archive, self.size(archive) / 1e9)
            with self.local(archive) as temporary:
                temporary.replace(copy)
        return copy

    def _copy(self, archive: Path) -> Path:
        """Path that a nested archive is extracted to; its name changes with the outer archive."""
        outer = next(parent for parent in archive.parents if parent.is_file())
        state = outer.stat()
        key = f"{archive}/{state.st_mtime_ns}/{state.st_size}".encode(errors="surrogateescape")
        return self.store / f"{archive.stem}-{hashlib.blake2b(key, digest_size=6).hexdigest()}.zip"


def _open(archive: Path) -> zipfile.ZipFile:
    """An open archive, cached for the next file; one per process, since a shared file has one position."""
    state = archive.stat()
    return _opened(archive, state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=8)
def _opened(archive: Path, changed: int, size: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _table_of_contents(archive: Path, called: Path) -> Mapping[str, tuple[str, int]]:
    """Stored name and size in bytes, by the path in the archive; messages refer to it as `called`."""
    state = archive.stat()
    try:
        return _read_table_of_contents(archive, state.st_mtime_ns, state.st_size)
    except _ERRORS as error:
        raise PrepareError(f"{called}: damaged or incomplete archive ({error}). {_AGAIN}") from error


@lru_cache(maxsize=64)
def _read_table_of_contents(archive: Path, changed: int, size: int) -> Mapping[str, tuple[str, int]]:
    with zipfile.ZipFile(archive) as file:
        entries = [entry for entry in file.infolist() if not entry.is_dir()]
    # Some archives were packed on Windows, with backslashes, or on a Mac, with hidden resource files.
    members = {entry.filename.replace("\\", "/"): entry for entry in entries}
    return {
        inner: (member.filename, member.file_size)
        for inner, member in members.items()
        if not any(part.startswith(".") or is_system_name(part) for part in inner.split("/"))
    }


def _remembered(path: Path) -> Mapping[str, tuple[str, int]] | None:
    if not path.is_file():
        return None
    state = path.stat()
    return _read_remembered(path, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_remembered(path: Path, changed: int) -> Mapping[str, tuple[str, int]]:
    return {inner: (name, size) for inner, (name, size) in json.loads(path.read_bytes()).items()}
