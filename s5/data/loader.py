"""The DataLoader of all runs: it never waits for its workers without a word."""

import logging
import multiprocessing
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from s5.data.errors import LoaderError
from s5.data.transport import FEWER_WORKERS, HOW_TO_ENLARGE, SHARED_MEMORY, PackingCollate

logger = logging.getLogger(__name__)

PATIENCE = 45.0  # seconds that a batch may take before the log says so, and between two such lines

# PyTorch raises this in the main process, wherever that is at the moment.
_DEATH = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: ([^.]+)|exited unexpectedly)"
)

_watches: "weakref.WeakSet[_Watch]" = weakref.WeakSet()


class Loader(DataLoader):
    """DataLoader whose workers pack their batches, and which logs that a batch takes long.

    Args:
        dataset: the samples.
        collate_fn: makes a batch of samples.
        options: of PyTorch's DataLoader.
    """

    def __init__(self, dataset: Dataset, *, collate_fn: Callable[[list], Any], **options: Any) -> None:
        super().__init__(dataset, collate_fn=PackingCollate(collate_fn), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches; the workers start now.

        Raises:
            LoaderError: the workers cannot start.
        """
        try:
            if self.num_workers:
                multiprocessing.Lock()  # fails without the traceback that PyTorch's half-made iterator prints
            batches = super().__iter__()
        except OSError as error:
            raise LoaderError(
                f"the loader workers cannot start ({error.strerror or error}); their queues take some KB of "
                f"{SHARED_MEMORY}. {HOW_TO_ENLARGE}, or {FEWER_WORKERS}"
            ) from error
        return batches if self.num_workers == 0 else _Watched(batches, self.num_workers)


def explain_death(error: RuntimeError) -> str | None:
    """What to do about a loader worker that died; None if the error does not say that one did."""
    # Raised while it waits for a batch, the error that names the signal is the cause of a second one.
    deaths = [_DEATH.search(str(one)) for one in (error.__cause__, error)]
    death = next(filter(None, deaths), None)
    if death is None:
        return None
    if death[1] == "Bus error":
        return f"a loader worker died of a full {SHARED_MEMORY}. {HOW_TO_ENLARGE}, or {FEWER_WORKERS}"
    if death[1] == "Killed":
        return (
            "a loader worker was killed, as happens when memory runs out. Give the run more memory, or "
            f"{FEWER_WORKERS}"
        )
    return (
        f"{death[0]}. Its own message, if any, is above; without loader workers (0) errors have a traceback"
    )


def waiting_since() -> float | None:
    """When this process began to wait for the batch that it waits for (monotonic time); None if for none."""
    return min((since for watch in _watches if (since := watch.since) is not None), default=None)


class _Watched(Iterator[Any]):
    """Batches, watched by a thread while the next one is awaited."""

    def __init__(self, batches: Iterator[Any], workers: int) -> None:
        self._batches, self._watch = batches, _Watch(workers)
        weakref.finalize(self, self._watch.over.set)

    def __next__(self) -> Any:  # noqa: ANN401
        self._watch.since = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self._watch.since = None


class _Watch:
    """A thread that logs when the main one waits for a batch.

    Attributes:
        since: when the wait began; None while there is none.
        over: ends the thread.
    """

    def __init__(self, workers: int) -> None:
        self.since: float | None = None
        self.over = threading.Event()
        self._workers = workers
        _watches.add(self)
        threading.Thread(target=self._run, name="s5_loader_watch", daemon=True).start()

    def _run(self) -> None:
        said = 0.0
        while not self.over.wait(PATIENCE / 3):
            since, now = self.since, time.monotonic()
            if since is not None and now - max(since, said) > PATIENCE:
                said = now
                logger.warning(
                    "no batch for %.0f s; all %d loader workers are alive. Slow storage and huge images take "
                    "their time. If nothing comes, stop (Ctrl-C) and try without loader workers (0)",
                    now - since,
                    self._workers,
                )
