"""What all commands share: exit codes, errors without a traceback, number of CPUs, progress of long loops."""

import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from s5.errors import ESCAPE, SignalInterrupt, UserError

if TYPE_CHECKING:
    from tqdm import tqdm

# Prefix that PyTorch adds to the message of an error in a loader worker.
FROM_WORKER = re.compile(r"\ACaught \w+ in DataLoader worker.*^[\w.]+Error: ", re.DOTALL | re.MULTILINE)
_SECONDS_BETWEEN_LINES = 10.0


def escape_console() -> None:
    """Let stdout and stderr escape characters they cannot encode, as in file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook replaces them
            stream.reconfigure(errors=ESCAPE)


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_command(main: Callable[[], int], *, repeatable: bool = False) -> int:
    """Run `main` and return the exit code of the command.

    Args:
        main: The command; returns an exit code.
        repeatable: Whether the command keeps finished work and continues when run again. If so, SIGTERM acts
            as an interrupt, log lines go to stderr, and messages about interrupts and file errors say that
            the command can be repeated.

    Returns:
        The exit code of `main`; 1 after a user error, 130 after Ctrl-C, 128 + n after another signal n. Any
        other error propagates with its traceback.
    """
    escape_console()
    try:
        with _repeatable() if repeatable else nullcontext():
            return main()
    except UserError as error:
        return _failed(FROM_WORKER.sub("", str(error)).rstrip())
    except OSError as error:
        if not repeatable:
            raise
        return _failed(f"{error}. Finished work is kept; run the same command again.")
    except RuntimeError as error:
        from s5.data.worker_pool import explain_death  # imports torch, which data commands do not need

        explanation = explain_death(error)
        if explanation is None:
            raise
        return _failed(explanation)
    except KeyboardInterrupt as error:
        hint = "; run the same command again to continue" if repeatable else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 128 + (error.number if isinstance(error, SignalInterrupt) else signal.SIGINT)


def _failed(message: str) -> int:
    print("error:", message, file=sys.stderr)
    return 1


@contextmanager
def _repeatable() -> Iterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


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
        self._bar = _bar(total, what, unit) if sys.stderr.isatty() else None
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


def _bar(total: int, what: str, unit: str) -> "tqdm":
    from tqdm import tqdm  # s5.doctor, which imports this module, must work without it

    tqdm.monitor_interval = 0  # forking while its monitor thread runs would be unsafe
    return tqdm(total=total, desc=what, unit=f" {unit}")
