r"""Split files: one sample per line, `image[ mask]`, paths relative to the data root.

Accepted: UTF-8 with or without a byte-order mark, Unix or Windows line ends, blank lines, spaces in names.
A TAB always separates image and mask (at the end of a line it marks a line without a mask). Without a TAB the
line is split at the white space after a known image extension: `field one/a 1.png masks/a 1.png` are two
paths, `field one/a 1.png` is one. Absolute paths are allowed. In place of an image, a line can have a window
of it or a member of an archive (`a.tif#xywh=0,0,512,512`, `pool.zip!/a.jpg`): see docs/references.md.

Other formats (UTF-16, backslashes, commas, quotes) are refused with the reason.
"""

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s5.data.files import atomic_path
from s5.errors import SplitError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Extensions, in lower case, by which image files are recognised."""

_ENDING = f"(?:{'|'.join(map(re.escape, IMAGE_EXTENSIONS))})"
_NUMBERS = r"(?:at=(?P<at>\d{1,18}),(?P<size>\d{1,18}))?"
_NUMBERS += r"(?:(?:(?<=#)|(?<=\d)&)xywh=(?P<x>\d{1,9}),(?P<y>\d{1,9}),(?P<w>\d{1,9}),(?P<h>\d{1,9}))?"
_FRAGMENT = rf"#{_NUMBERS}(?<!#)"

REFERENCE = re.compile(
    rf"(?P<file>.+?)(?:(?<=\.(?i:zip|tar))!/(?P<member>.+?))?(?:{_FRAGMENT})?", re.ASCII | re.DOTALL
)
"""The form of an image path: see docs/references.md and `s5.data.references.parse`."""

_PAIR = re.compile(rf"(?P<image>.+?{_ENDING}(?a:{_FRAGMENT})?)\s+(?P<mask>\S.*)", re.IGNORECASE)

_BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_FOREIGN = (
    (re.compile(r"""^["']|["']$"""), "it has quotes, write paths without them"),
    (re.compile(r"\\"), "it has backslashes, write / between folders"),
    (
        re.compile(rf"{_ENDING}\s*[,;]|^[^./\\]*[,;][^./\\]*$", re.IGNORECASE),  # or a header line
        "it has commas or semicolons, write a space or a TAB between image and mask",
    ),
    (re.compile("[\udc80-\udcff]"), "it is not UTF-8; convert the list (iconv -f GBK -t UTF-8 OLD > NEW)"),
)


class Sample(NamedTuple):
    """One line of a split: absolute paths, and the image path as written."""

    image: Path
    mask: Path | None
    name: str


class Split:
    """The lines of a split file in one buffer.

    The text is a single bytes object and the line offsets are a single array: a million lines load in a
    fraction of a second and take about as much memory as on disk. Forked loader workers share these pages,
    because nothing writes to them; /dev/shm is not used. Lines are parsed on access.

    Args:
        path: The split file; a relative path is looked up under `root`, then in the working directory.
        root: Folder that the paths in the file are relative to.

    Raises:
        SplitError: The file is missing (the message lists the paths tried), has no samples or is not UTF-8.
    """

    def __init__(self, path: str | Path, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.path = _find(Path(path), self.root)
        self._load(read_list(self.path))

    @classmethod
    def from_lines(cls, lines: Iterable[str], root: str | Path, path: str | Path) -> "Split":
        """Create a split without a file.

        Args:
            lines: Lines from `format_line`.
            root: Folder that the paths in the lines are relative to.
            path: Name of the split in messages.

        Raises:
            SplitError: There are no samples.
        """
        split = cls.__new__(cls)
        split.root, split.path = Path(root).absolute(), Path(path)
        split._load("\n".join(lines).encode(errors="surrogateescape"))
        return split

    def _load(self, data: bytes) -> None:
        text, offsets = _scan(data)
        if len(offsets) == 0:
            raise SplitError(
                f"{self.path}: no samples. Each line is 'image' or 'image mask', relative to {self.root}"
            )
        self._text = text
        self._offsets = offsets  # (N, 2): first byte of each line, and the one after the last

    def __len__(self) -> int:
        """Number of samples."""
        return self._offsets.shape[0]

    def sample(self, index: int) -> Sample:
        """The sample at `index` (0-based, negative counts from the end).

        Raises:
            SplitError: The line has more than two TAB-separated parts.
        """
        image, mask = self._parts(index)
        return Sample(self.root / image, self.root / mask if mask else None, image)

    def name(self, index: int) -> str:
        """The image path at `index` as written in the file."""
        return self._parts(index)[0]

    def line(self, index: int) -> str:
        """The line at `index`, for writing or for another split."""
        image, mask = self._parts(index)
        return format_line(image, mask or None)

    def misread(self, index: int) -> str:
        """Likely format error in the line at `index`, if its files do not exist; empty if there is none.

        Existing files may have backslashes, commas or quotes in their names.
        """
        parts = [part for part in self._parts(index) if part]
        lacking = [part for part in parts if explain_foreign(part) and not self._exists(part)]
        if not lacking:
            return ""
        reason = explain_foreign(lacking[0])
        return f"{self.path}, line {self._line_number(index)}: no file {lacking[0]} in {self.root}; {reason}"

    def _exists(self, part: str) -> bool:
        """Whether there is such a file, or the one that a reference points into."""
        path = self.root / part
        if os.path.exists(path):
            return True
        found = REFERENCE.fullmatch(str(path))
        return found is not None and os.path.exists(found["file"])

    def check_first_line(self) -> None:
        """Refuse a list in another format, judged by its first line.

        Raises:
            SplitError: The line has backslashes, commas or quotes, and its files do not exist.
        """
        if problem := self.misread(0):
            raise SplitError(problem)

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples in the order of the file."""
        return (self.sample(i) for i in range(len(self)))

    def _line_number(self, index: int) -> int:
        """Line of the file, counted from 1."""
        return np.asarray(self._text[: int(self._offsets[index, 0])]).tobytes().count(b"\n") + 1

    def _parts(self, index: int) -> tuple[str, str]:
        begin, end = self._offsets[index].tolist()
        line = os.fsdecode(self._text[begin:end]).strip(" ")
        if "\t" in line:
            image, mask, *rest = (part.strip() for part in line.split("\t"))
            if rest or not image:
                raise SplitError(
                    f"{self.path}, line {self._line_number(index)}: a line is 'image' or 'image<TAB>mask', "
                    f"got {line!r}"
                )
            return image, mask
        pair = _PAIR.fullmatch(line)
        return (pair["image"], pair["mask"]) if pair else (line, "")


def read_list(path: Path) -> bytes:
    """Read a text file that lists names.

    Raises:
        SplitError: The file is UTF-16, UTF-32 or binary.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        # Guess the encoding, including the byte order, from the NUL bytes around a first Latin letter.
        beginnings = {b"x\0\0\0": "UTF-32LE", b"\0\0\0x": "UTF-32BE", b"x\0": "UTF-16LE", b"\0x": "UTF-16BE"}
        ones = bytes(byte and ord("x") for byte in data[:4])
        encoding = next((name for start, name in beginnings.items() if ones.startswith(start)), None)
        if encoding is None:
            raise SplitError(f"{path}: not a text file (it contains NUL bytes); a split file is UTF-8 text")
    if encoding is not None:
        raise SplitError(
            f"{path}: is encoded in {encoding}, as Windows PowerShell's > does; split files are UTF-8. "
            f"Convert it (iconv -f {encoding} -t UTF-8 OLD > NEW; in PowerShell Get-Content OLD | "
            "Set-Content -Encoding utf8 NEW), or save it as UTF-8 in an editor"
        )
    return data


def explain_foreign(name: str) -> str:
    """Likely format error in a path of a list, if no such file exists; empty if there is none."""
    return "; ".join(text for pattern, text in _FOREIGN if pattern.search(name))


def format_line(image: str, mask: str | None = None) -> str:
    """A line that `Split` reads back as these two paths."""
    if any(c in part for part in (image, mask or "") for c in "\t\n\r"):
        raise SplitError(f"a path in a split file cannot contain a TAB or line break: {image!r}, {mask!r}")
    if mask is None:
        # A TAB at the end marks 'a.png b.png' as one name with a space.
        return f"{image}\t" if _PAIR.fullmatch(image) else image
    return f"{image}\t{mask}" if any(c.isspace() for c in image + mask) else f"{image} {mask}"


def write_split(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines of `format_line` to `path` atomically; missing folders are created."""
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)


def _find(path: Path, root: Path) -> Path:
    candidates = list(dict.fromkeys((root / path, path.absolute())))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " and ".join(str(c) for c in candidates)
    raise SplitError(
        f"split file {path} not found; looked for {looked}. Correct its path, or create it with "
        "'python -m s5.data.prepare'"
    )


def _scan(data: bytes) -> tuple[bytes, np.ndarray]:
    """Text and line offsets int64 (N, 2) of the lines that are not blank."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero(text == ord("\n"))
    begin, end = np.append(0, breaks + 1), np.append(breaks, len(text))
    filled = end > begin
    # Only lines that start with white space can be blank.
    for i in np.flatnonzero(filled & np.isin(np.append(text, 0)[begin], [9, 32])):
        filled[i] = bool(data[begin[i] : end[i]].strip())
    return data, np.stack([begin, end], 1)[filled]
