"""Errors that a command explains to its user without a traceback, see `s5.command.run_command`.

Every message names the file or value, the problem and the remedy.
"""

import codecs
import difflib
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

ESCAPE = "s5.escape"
r"""Name of an error handler for encoding: characters that a stream cannot encode are written as `\u5f71`, and
bytes of file names that are not UTF-8, which Python represents as surrogates, as `\xcf`."""


def printable(text: str) -> str:
    """Escape characters that UTF-8 cannot encode, see `ESCAPE`."""
    return text.encode("utf-8", ESCAPE).decode("utf-8")


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Join the first `limit` names with commas, followed by the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name that is most like `name`, or nothing if none is."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


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


class UserError(Exception):
    """Base of all errors whose message says what is wrong, in which file or value, and what to do."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read, understood or loaded."""


class ConfigError(UserError, ValueError):
    """A configuration is invalid; the message names file, key and value."""


class DataError(UserError, ValueError):
    """Data on disk is missing or invalid; the message names the problem and the remedy.

    Args:
        message: The message; bytes of file names that are not UTF-8 are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ImageError(DataError):
    """An image or mask is missing, truncated or cannot be decoded.

    Args:
        path: The file.
        reason: What is wrong with it.
        hint: What to do; may be empty.
    """

    # The defaults let a DataLoader rebuild the error from its message alone.
    def __init__(self, path: str | Path, reason: str = "", hint: str = "") -> None:
        self.path, self.reason, self.hint = str(path), reason, hint
        message = f"{self.path}: {reason}" if reason else self.path
        super().__init__(f"{message}. {hint}" if hint else message)

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, str]]:
        """Keep the three parts when the error is pickled."""
        return type(self), (self.path, self.reason, self.hint)


class LabelError(DataError):
    """A label table is malformed, or a mask does not match its table."""


class SplitError(DataError):
    """A split file is missing, empty or malformed; its lines are `image[ mask]`."""


class LoaderError(DataError):
    """Loader workers cannot start, or their batches do not reach the main process."""


class PrepareError(DataError):
    """Downloaded data is missing or incomplete, or a preparation cannot start or continue."""


class SignalInterrupt(KeyboardInterrupt):
    """A signal ends the run immediately.

    Attributes:
        number: Signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
