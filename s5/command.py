"""The outermost layer of every command: its exit code, and errors without a traceback."""

import io
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from s5.errors import ESCAPE, SignalInterrupt, UserError

# What PyTorch puts before the message of an error in a loader worker.
FROM_WORKER = re.compile(r"\ACaught \w+ in DataLoader worker.*^[\w.]+Error: ", re.DOTALL | re.MULTILINE)


def escape_console() -> None:
    """Let stdout and stderr escape what they cannot encode, such as file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook replaces them
            stream.reconfigure(errors=ESCAPE)


def run_command(main: Callable[[], int], *, repeatable: bool = False) -> int:
    """Run `main` and return the exit code of the command.

    Args:
        main: Returns an exit code of its own.
        repeatable: The command keeps what it has finished and continues when it is called again. Then
            SIGTERM is an interrupt, log lines go to stderr, and messages about interrupts and files say so.

    Returns:
        That of `main`; 1 after an error that its message explains, 130 after Ctrl-C, 128 + n after another
        signal n. Any other error propagates with its traceback.
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
        return _failed(f"{error}. What is finished is kept; run the same command again.")
    except RuntimeError as error:
        from s5.data.worker_pool import explain_death  # imports torch, which data commands do without

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
