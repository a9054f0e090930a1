"""Names of tasks, the datasets of a model: which may be given, which are meant, and errors that say them."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from s5.data.errors import DataError
from s5.engine.config import ConfigError

T = TypeVar("T")

TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def check_task_names(tasks: dict[str, T]) -> dict[str, T]:
    """Refuse names that cannot name a module or a file; returns the tasks.

    Raises:
        ValueError: no task, or a bad name.
    """
    if not tasks:
        raise ValueError("at least one dataset is needed")
    taken = dir(nn.ModuleDict())
    for name in tasks:
        if not TASK_NAME.fullmatch(name) or name in taken:
            raise ValueError(
                f"{name!r} cannot name a task: a letter, then letters, digits, _ and -, and no name of "
                f"an attribute of torch's modules such as 'keys' or 'type'"
            )
    twice = [name for name in tasks if sum(name.lower() == other.lower() for other in tasks) > 1]
    if twice:
        raise ValueError(f"datasets of the same name: {', '.join(twice)}")
    return tasks


def known_tasks(known: Collection[str], wanted: Collection[str]) -> list[str]:
    """The tasks of a model that are wanted, in its order; all if none are named.

    Raises:
        ConfigError: unknown task; lists the known ones.
    """
    for task in wanted:
        if task not in known:
            raise ConfigError(f"unknown task {task!r}; this model's tasks: {', '.join(known)}")
    return [task for task in known if task in wanted or not wanted]


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors say the key of the configuration whose data they are of."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from error
