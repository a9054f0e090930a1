"""The command-line end that the commands of the data layer share."""

import io
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

from s5.data.errors import ESCAPE, DataError


def escape_console() -> None:
    """Let stdout and stderr escape what they cannot encode, such as file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a notebook puts there
            stream.reconfigure(errors=ESCAPE)


def run_command(action: Callable[[], int]) -> int:
    """Run the action of a command that can be interrupted and called again.

    Log lines go to stderr. A polite request to end (SIGTERM) counts as an interrupt.

    Returns:
        The exit code: the action's own, 1 after an error, 130 when interrupted.
    """
    escape_console()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return action()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. What is finished is kept; run the same command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
