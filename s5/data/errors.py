"""Errors of the data layer: every message names the file, what is wrong with it and the way out."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """Something about the data on disk is wrong; the message says what and what to do."""


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
