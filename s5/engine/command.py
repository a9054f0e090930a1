"""The outermost layer of a command: errors a user can act on are printed without a traceback."""

import sys
from collections.abc import Callable

from s5.data.errors import DataError
from s5.engine.checkpoint import CheckpointError
from s5.engine.config import ConfigError
from s5.engine.hooks.safety import NonFiniteLossError
from s5.engine.launch import LaunchError, finish

USER_ERRORS = (ConfigError, DataError, CheckpointError, LaunchError, NonFiniteLossError)


def run_command(main: Callable[[], int]) -> int:
    """Run ``main`` and return its exit code, 1 after an error that its message explains."""
    try:
        return main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        finish()
