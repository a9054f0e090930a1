"""Images in zip and tar archives: list them in bounded memory, and find their bytes without unpacking.

Only the structure of the archives is read here; `s5.data.references` reads single members.
"""

import os
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from s5.data.folders import is_system_name
from s5.data.splits import IMAGE_EXTENSIONS
from s5.errors import ImageError

ARCHIVE_EXTENSIONS = (".zip", ".tar")
"""Extensions, in lower case, of the archives that are read in place."""

OTHER_ARCHIVES = tuple(
    ".tar.gz .tgz .tar.bz2 .tbz2 .tbz .tar.xz .txz .tar.lz .tar.lzma .tar.zst .tzst .tar.z .7z .rar".split()
)
"""Extensions, in lower case, of archives that have to be unpacked or converted first."""

_STORED, _DEFLATED = 0, 8  # methods of zip
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 1, 8, 1 << 11  # flags of zip
_HASH = (1 << 64) - 1
_LOCAL, _CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
DAMAGED = "its archive is damaged: header and directory disagree", "Restore it from its source"
_IN_PLACE = "cannot be read in place; unpack it, or convert it to zip or uncompressed tar"


class Member(NamedTuple):
    """An image in an archive.

    Attributes:
        name: Its path in the archive, with / between folders, without `.` and a leading /.
        at: Offset of its header in bytes.
        size: Size as stored (compressed), in bytes.
    """

    name: str
    at: int
    size: int


class Unusable(NamedTuple):
    """A member that cannot be read, or the archive itself, and the reason."""

    name: str
    reason: str


class Entry(NamedTuple):
    """Any file in an archive: a `Member`, with a reason if it cannot be read."""

    name: str
    at: int
    size: int
    reason: str = ""


class Stored(NamedTuple):
    """The bytes of a member in an open archive."""

    file: BinaryIO
    offset: int
    size: int
    inflated: int | None = None  # size after decompression; None if stored as it is
    crc: int | None = None

    def read(self, path: str, first: int | None = None) -> bytes:
        """Read the contents, or only the first bytes."""
        self.file.seek(self.offset)
        wanted = self.size if first is None or self.inflated is not None else min(first, self.size)
        data = self.file.read(wanted)
        if len(data) < wanted:
            raise ImageError(path, "its archive is truncated", DAMAGED[1])
        if self.inflated is not None:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, first or self.inflated + 1)
            except zlib.error as error:
                raise ImageError(path, f"its compressed data are damaged ({error})", DAMAGED[1]) from error
        if first is None and self.crc is not None and zlib.crc32(data) != self.crc:
            raise ImageError(path, "its data are damaged (wrong checksum)", DAMAGED[1])
        return data


def members(archive: str | Path) -> Iterator[Member | Unusable]:
    """The images of an archive in the order of its directory, in bounded memory.

    Hidden files, thumbnails and the like are left out. What holds or may hold images but cannot be read comes
    as `Unusable`: password-protected members, links, other compressions than deflate, nested archives, and,
    under its own name, an archive that is compressed as a whole or damaged.

    Raises:
        ImageError: There is no such file.
    """
    for entry in entries(str(archive)):
        if isinstance(entry, Unusable):
            yield entry
            continue
        folded = entry.name.lower()
        if any(_is_hidden(part) for part in entry.name.split("/")):
            continue
        if folded.endswith((*ARCHIVE_EXTENSIONS, *OTHER_ARCHIVES)):
            yield Unusable(entry.name, "an archive inside an archive; unpack the outer one")
        elif folded.endswith(IMAGE_EXTENSIONS):
            reason = entry.reason
            if any(c in entry.name for c in "\t\n\r"):
                reason = "its name has a TAB or a line break; rename it"
            yield Unusable(entry.name, reason) if reason else Member(*entry[:3])


def _is_hidden(part: str) -> bool:
    return is_system_name(part) or (part.startswith(".") and part != "..")


def entries(archive: str) -> Iterator[Entry | Unusable]:
    """All files in an archive, including those that cannot be read."""
    if not os.path.isfile(archive):
        raise ImageError(archive, "no such file", "Check the path of the archive")
    if not archive.lower().endswith(ARCHIVE_EXTENSIONS):
        yield Unusable(archive, f"an archive of this kind {_IN_PLACE}")
        return
    try:
        with open(archive, "rb") as file:
            yield from (_zip_entries if archive.lower().endswith(".zip") else _tar_entries)(file)
    except (tarfile.TarError, zlib.error, struct.error, ValueError, OSError) as error:
        yield Unusable(archive, f"damaged, truncated or not an archive of this kind ({error})")


def _tar_entries(file: BinaryIO) -> Iterator[Entry]:
    if re.match(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", file.read(6)):
        raise ValueError(f"it is compressed and {_IN_PLACE}")
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.TarFile(fileobj=file, encoding="utf-8") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # which it would keep
            if info.isreg() and info.offset_data + info.size > length:
                raise ValueError(f"{info.name} is cut off")
            if info.isdir():
                continue
            reason = "" if info.isreg() and not info.issparse() else "a link or not a plain file; unpack it"
            yield Entry(clean_name(info.name), info.offset, info.size, reason)
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):  # the library ends silently
            raise ValueError(f"no header at byte {archive.offset}")


def _zip_entries(file: BinaryIO) -> Iterator[Entry]:
    start, count, shift = _central_directory(file)
    file.seek(start)
    for _ in range(count):
        fields = _CENTRAL.unpack(file.read(_CENTRAL.size))
        magic, made, _, flags, method, _, _, _, size, inflated, names, extras, comments, *_ = fields
        if magic != b"PK\1\2":
            raise ValueError("its directory is damaged")
        name, extra, _ = file.read(names), file.read(extras), file.read(comments)
        attributes, at = fields[-2:]
        _, size, at = _widened(extra, inflated, size, at)
        if name.endswith((b"/", b"\\")):
            continue
        reason = _cannot_read(flags, method)
        if made >> 8 == 3 and stat.S_ISLNK(attributes >> 16):  # packed on Unix
            reason = "a link; unpack the archive"
        yield Entry(_zip_name(name, flags), at + shift, size, reason)


def _central_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Offset and number of entries of a zip's directory, and what to add to the offsets in it.

    The end record has 22 bytes and a comment; if numbers do not fit, a locator of 20 bytes and a record of 56
    (zip64) come before. Bytes before the archive, such as an unpacking program, shift all offsets.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - (1 << 16) - 42))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        raise ValueError("its directory is missing")
    disk, _, _, count, size, start, _ = struct.unpack("<4H2IH", tail[end + 4 : end + 22])
    stop = length - len(tail) + end
    if tail[max(0, end - 20) : end].startswith(b"PK\6\7"):
        file.seek(stop - 20 - 56)
        record = file.read(56)
        if not record.startswith(b"PK\6\6"):
            raise ValueError("its zip64 record is damaged")
        disk, _, _, count, size, start = struct.unpack("<2I4Q", record[16:])
        stop -= 20 + 56
    if disk not in (0, 0xFFFF):
        raise ValueError("it is divided into several files; join them")
    shift = stop - size - start
    if shift < 0:
        raise ValueError("its directory is cut off")
    return start + shift, count, shift


def _widened(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace numbers that did not fit by those of the zip64 field, which has them in the same order."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = (number for (number,) in struct.iter_unpack("<Q", extra[at + 4 :][: length // 8 * 8]))
            return tuple(next(wide) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + length
    return values


def _cannot_read(flags: int, method: int) -> str:
    if flags & _ENCRYPTED:
        return "password-protected; unpack it"
    known = method in (_STORED, _DEFLATED)
    return "" if known else f"compressed with method {method}, only stored and deflated ones can be read"


def _zip_name(name: bytes, flags: int) -> str:
    return clean_name(name.decode("utf-8", "surrogateescape") if flags & _UTF8 else name.decode("cp437"))


def clean_name(name: str) -> str:
    """Name as pathlib writes it, with the separators of Unix."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def locate(file: BinaryIO, path: str, name: str, at: int, size: int) -> Stored | None:
    """Find the bytes of a member whose header is at an offset.

    Args:
        file: The open archive; its name tells zip from tar.
        path: The reference, for messages.
        name: Name of the member, see `clean_name`.
        at: Offset of its header.
        size: Size as stored.

    Returns:
        None if the header of this member, with this size, is not there.

    Raises:
        ImageError: The member cannot be read.
    """
    is_zip = str(file.name).lower().endswith(".zip")
    return (_locate_in_zip if is_zip else _locate_in_tar)(file, path, name, at, size)


def _locate_in_tar(file: BinaryIO, path: str, name: str, at: int, size: int) -> Stored | None:
    file.seek(at)
    try:
        info = tarfile.TarFile(fileobj=file, encoding="utf-8").next()
    except (tarfile.TarError, ValueError):
        return None
    if info is None or clean_name(info.name) != name or info.size != size:
        return None
    if not info.isreg() or info.issparse():
        raise ImageError(path, "a link or not a plain file", "Unpack the archive")
    return Stored(file, info.offset_data, size)


def _locate_in_zip(file: BinaryIO, path: str, name: str, at: int, size: int) -> Stored | None:
    file.seek(at)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        return None
    magic, _, flags, method, _, _, crc, stored, inflated, names, extras = _LOCAL.unpack(head)
    if magic != b"PK\3\4" or _zip_name(file.read(names), flags) != name:
        return None
    inflated, stored = _widened(file.read(extras), inflated, stored)
    if reason := _cannot_read(flags, method):
        raise ImageError(path, reason, "Unpack the archive")
    offset = file.tell()
    if flags & _SIZES_FOLLOW:
        file.seek(offset + size)
        crc, stored, inflated = _sizes_after(file.read(28), size)
    if stored != size:
        return None
    return Stored(file, offset, size, inflated if method == _DEFLATED else None, crc)


def _sizes_after(tail: bytes, size: int) -> tuple[int, int, int]:
    """Checksum, stored and inflated size behind the data of a zip member whose size was not known before."""
    tail = tail.removeprefix(b"PK\7\b").ljust(24, b"\0")
    crc, stored, inflated = struct.unpack_from("<3I", tail)
    wide = struct.unpack_from("<2Q", tail, 4)
    return (crc, *wide) if wide[0] == size else (crc, stored, inflated)


class Directory:
    """Offset and size of the members by hash of their names: 24 bytes a member.

    Attributes:
        problem: Why a part or all of the archive cannot be read; may be empty.
    """

    def __init__(self, found: Iterator[Entry | Unusable]) -> None:
        self.problem = ""
        rows = np.fromiter(self._usable(found), "u8,u8,u8")
        self._rows = rows[np.argsort(rows["f0"], kind="stable")]

    def _usable(self, found: Iterator[Entry | Unusable]) -> Iterator[tuple[int, int, int]]:
        for entry in found:
            if isinstance(entry, Unusable):
                self.problem = entry.reason
            else:
                yield hash(entry.name) & _HASH, entry.at, entry.size

    def find(self, name: str) -> list[tuple[int, int]]:
        """Candidates for a member, the last in the archive first."""
        key = np.uint64(hash(name) & _HASH)
        first, last = (np.searchsorted(self._rows["f0"], key, side) for side in ("left", "right"))
        return [(at, size) for _, at, size in self._rows[first:last][::-1].tolist()]
