"""Progress of long loops: a bar on a terminal, otherwise a log line every few seconds."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class _Bar(tqdm):
    # No monitor thread: forking with threads is unsafe.
    monitor_interval = 0


class Progress:
    """Count finished items of a known number.

    Args:
        total: Number of items.
        what: Description of the work.
        unit: Name of the items.
        logger: Used when stderr is not a terminal.
    """

    def __init__(self, total: int, what: str, unit: str, logger: logging.Logger) -> None:
        self.total, self.what, self.unit, self._logger = total, what, unit, logger
        self.done = 0
        self._bar = _Bar(total=total, desc=what, unit=f" {unit}") if sys.stderr.isatty() else None
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Add `count` finished items."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self.done / (now - self._start)
            self._logger.info(
                "%s: %d of %d %s, %.3g/s, %.0f s left",
                self.what,
                self.done,
                self.total,
                self.unit,
                rate,
                (self.total - self.done) / rate,
            )
