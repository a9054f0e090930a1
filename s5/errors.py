"""Errors that a command explains to its user, without a traceback (see :func:`s5.command.run_command`)."""

import signal


class UserError(Exception):
    """Base of all errors whose message says what is wrong, in which file or value, and what to do."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read, understood or loaded."""


class SignalInterrupt(KeyboardInterrupt):
    """A signal ends the run at once.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
