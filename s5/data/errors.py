"""Errors of the data layer: every message names the file, what is wrong with it and the way out."""

from __future__ import annotations

import codecs
from pathlib import Path

from s5.errors import UserError

ESCAPE = "s5.escape"
r"""Name of an error handler for encoding: characters that a stream lacks are written as ``\u5f71``, and bytes
of file names that are not UTF-8, which Python holds as surrogates, as ``\xcf``."""


def printable(text: str) -> str:
    """The text with what UTF-8 cannot encode escaped, see :data:`ESCAPE`."""
    return text.encode("utf-8", ESCAPE).decode("utf-8")


def is_utf8(path: str | Path) -> bool:
    """Whether the bytes of a path are UTF-8, as GDAL and zip archives require."""
    return printable(str(path)) == str(path)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_escaped(character) for character in characters), error.end


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(ESCAPE, _escape)


class DataError(UserError, ValueError):
    """Something about the data on disk is wrong; the message says what and what to do.

    Args:
        message: file names in it may be of any bytes; what is not UTF-8 is escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ImageError(DataError):
    """An image or mask that is missing, truncated or cannot be decoded.

    Args:
        path: the file.
        reason: what is wrong with it.
        hint: the way out; may be empty.
    """

    # Defaults let the error cross a DataLoader, which rebuilds it from its message alone.
    def __init__(self, path: str | Path, reason: str = "", hint: str = "") -> None:
        self.path, self.reason, self.hint = str(path), reason, hint
        message = f"{self.path}: {reason}" if reason else self.path
        super().__init__(f"{message}. {hint}" if hint else message)

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        """Keep the three parts when the error crosses a process boundary."""
        return type(self), (self.path, self.reason, self.hint)


class LabelError(DataError):
    """A label table that is not well formed, or a mask that does not fit its table."""


class SplitError(DataError):
    """A split file that is missing, empty or not of the form ``image[ mask]``."""


class LoaderError(DataError):
    """Loader workers cannot start, or their batches do not reach the main process."""
