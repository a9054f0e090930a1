"""Pass batches from loader workers to the main process without /dev/shm.

PyTorch passes tensors through /dev/shm, which has 64 MB in a container by default, in a background thread of
the worker: a batch that does not fit is dropped there, and the main process waits for it forever. Here the
worker writes the tensors into an anonymous in-memory file (`memfd_create`) before it queues the batch; only
the memory of the machine limits its size. Any failure is an error of that batch, which the main process
raises. It also takes one file descriptor per batch instead of one per tensor.

Where `memfd_create` is not available (macOS, some sandboxes), an unnamed temporary file is used, in /dev/shm
if it exists.
"""

import io
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info

from s5.errors import LoaderError

SHARED_MEMORY = Path("/dev/shm")
HOW_TO_ENLARGE = (
    "Give the container a larger /dev/shm (docker run --shm-size=8g or --ipc=host; in Kubernetes mount an "
    "emptyDir with medium Memory there)"
)
FEWER_WORKERS = "use fewer loader workers (data.workers or workers in the configuration; 0 needs none)"
_ALIGNMENT = 64  # bytes, as in PyTorch's allocator


class PackingCollate:
    """A collate function that packs its batches when it runs in a loader worker.

    Args:
        collate: Creates the batch; must be picklable if workers are spawned.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> Any:  # noqa: ANN401
        """Collate samples; in a worker, the result is a `PackedBatch`."""
        batch = self.collate(samples)
        return batch if get_worker_info() is None else PackedBatch(batch)


class PackedBatch:
    """A batch whose tensors are in an in-memory file; unpickling it in another process gives the batch.

    Tensors keep their strides if they are dense in any order of the dimensions (such as channels-last).

    Args:
        batch: Any picklable structure that contains tensors.

    Raises:
        LoaderError: The tensors do not fit into memory.
    """

    def __init__(self, batch: Any) -> None:  # noqa: ANN401
        structure = io.BytesIO()
        with _memory_file() as file:
            pickler = _Pickler(structure, file)
            try:
                pickler.dump(batch)
                self._file = DupFd(file.fileno()) if pickler.size else None
            except OSError as error:
                raise _does_not_fit(pickler.size, error) from error
        self._structure, self._size = structure.getvalue(), pickler.size

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        """Unpickle to the batch itself."""
        return _unpack, (self._structure, self._file, self._size)


class _Pickler(pickle.Pickler):
    """Pickles a structure; its tensors are written to a file, `size` bytes so far."""

    def __init__(self, structure: BinaryIO, file: io.FileIO) -> None:
        super().__init__(structure, pickle.HIGHEST_PROTOCOL)
        self.size = 0
        self._file = file

    def persistent_id(self, value: Any) -> tuple | None:  # noqa: ANN401
        """Offset of a tensor in the file, and how to read it."""
        if not isinstance(value, torch.Tensor):
            return None
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        dense = value.detach().permute(order).contiguous()
        start = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        padding, self.size = start - self.size, start + dense.nbytes
        self._write(memoryview(bytes(padding)))
        flat = dense.flatten()
        if flat.stride(0) != 1:  # of 0 or 1 elements: contiguous, but cannot be viewed as bytes
            flat = flat.clone(memory_format=torch.contiguous_format)
        self._write(flat.view(torch.uint8).numpy().data)
        inverse = [order.index(dimension) for dimension in range(len(order))]
        return start, dense.dtype, tuple(dense.shape), inverse

    def _write(self, data: memoryview) -> None:
        while data:  # one call writes 2 GB at most
            data = data[self._file.write(data) :]


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote; the tensors are views of `memory` and keep it alive."""

    def __init__(self, structure: BinaryIO, memory: mmap.mmap | None) -> None:
        super().__init__(structure)
        self._memory = memory

    def persistent_load(self, location: tuple) -> torch.Tensor:
        """Load the tensor at a location returned by `_Pickler.persistent_id`."""
        start, dtype, shape, inverse = location
        count = math.prod(shape)
        if count == 0 or self._memory is None:
            flat = torch.empty(0, dtype=dtype)
        else:
            flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start)
        return flat.view(shape).permute(inverse)


def _unpack(structure: bytes, file: Any, size: int) -> Any:  # noqa: ANN401
    """Unpickle a batch. Errors are returned: raising them would end the thread that pins memory."""
    try:
        try:
            memory = None
            if file is not None:
                descriptor = file.detach()
                try:
                    memory = mmap.mmap(descriptor, size)
                finally:
                    os.close(descriptor)
            return _Unpickler(io.BytesIO(structure), memory).load()
        except Exception as error:
            raise LoaderError(
                f"a batch of {size / 2**20:.1f} MiB did not arrive from its loader worker "
                f"({type(error).__name__}: {error}). The worker was killed, as happens when memory runs out, "
                f"or this process has too many open files (ulimit -n). Raise the limit, or {FEWER_WORKERS}"
            ) from error
    except LoaderError:
        return ExceptionWrapper(where="in DataLoader worker's batch, on its arrival")


def _memory_file() -> io.FileIO:
    """Create an unnamed empty file, in memory if possible."""
    try:
        if memfd_works():
            return io.FileIO(os.memfd_create("s5_batch"), "w+")
        return tempfile.TemporaryFile(buffering=0, dir=_folder())
    except OSError as error:
        raise _does_not_fit(0, error) from error


@cache
def memfd_works() -> bool:
    """Whether `memfd_create` works: not on macOS, on old kernels, or where a sandbox forbids it."""
    try:
        os.close(os.memfd_create("s5_batch"))
    except (AttributeError, OSError):
        return False
    return True


def _folder() -> Path:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def _does_not_fit(size: int, error: OSError) -> LoaderError:
    """The error for a batch of which `size` bytes were written or about to be written."""
    problem = f"a batch of at least {size / 2**20:.1f} MiB cannot leave its loader worker ({error.strerror})"
    if memfd_works():
        return LoaderError(f"{problem}: out of memory or open files (ulimit -n); {FEWER_WORKERS}")
    folder = _folder()
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB are free in {folder}"
    remedy = HOW_TO_ENLARGE if folder == SHARED_MEMORY else "Set TMPDIR to a folder with more space"
    return LoaderError(f"{problem}: {free}. {remedy}, or {FEWER_WORKERS}")


logger = logging.getLogger(__name__)

PATIENCE = 45.0  # seconds to wait for a batch before a warning, and between warnings

# PyTorch raises this in the main process, asynchronously.
_DEATH = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: ([^.]+)|exited unexpectedly)"
)

_watches: "weakref.WeakSet[_Watch]" = weakref.WeakSet()


class Loader(DataLoader):
    """DataLoader whose workers pack their batches, with warnings when a batch takes long.

    Args:
        dataset: The samples.
        collate_fn: Creates a batch from samples.
        options: Options of PyTorch's DataLoader.
    """

    def __init__(self, dataset: Dataset, *, collate_fn: Callable[[list], Any], **options: Any) -> None:
        super().__init__(dataset, collate_fn=PackingCollate(collate_fn), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Start the workers and iterate over batches.

        Raises:
            LoaderError: The workers cannot start.
        """
        try:
            if self.num_workers:
                multiprocessing.Lock()  # fails without the traceback that PyTorch's half-made iterator prints
            batches = super().__iter__()
        except OSError as error:
            raise LoaderError(
                f"the loader workers cannot start ({error.strerror or error}); their queues need some KB of "
                f"{SHARED_MEMORY}. {HOW_TO_ENLARGE}, or {FEWER_WORKERS}"
            ) from error
        return batches if self.num_workers == 0 else _Watched(batches, self.num_workers)


def explain_death(error: RuntimeError) -> str | None:
    """The error for a dead loader worker, with remedies; None if the error is a different one."""
    # While waiting for a batch, the error that names the signal is the cause of a second one.
    deaths = [_DEATH.search(str(one)) for one in (error.__cause__, error)]
    death = next(filter(None, deaths), None)
    if death is None:
        return None
    if death[1] == "Bus error":
        return f"a loader worker died because {SHARED_MEMORY} is full. {HOW_TO_ENLARGE}, or {FEWER_WORKERS}"
    if death[1] == "Killed":
        return (
            "a loader worker was killed, as happens when memory runs out. Give the run more memory, or "
            f"{FEWER_WORKERS}"
        )
    return f"{death[0]}. Its message, if any, is above; without loader workers (0) errors have a traceback"


def waiting_since() -> float | None:
    """Monotonic time since when this process has been waiting for a batch; None if it is not waiting."""
    return min((since for watch in _watches if (since := watch.since) is not None), default=None)


class _Watched(Iterator[Any]):
    """Iterator over batches; a thread watches how long the next one takes."""

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
    """A thread that warns when the main thread waits long for a batch.

    Attributes:
        since: Monotonic time when the wait began; None when not waiting.
        over: Event that ends the thread.
    """

    def __init__(self, workers: int) -> None:
        self.since: float | None = None
        self.over = threading.Event()
        self._workers = workers
        _watches.add(self)
        threading.Thread(target=self._run, name="s5_loader_watch", daemon=True).start()

    def _run(self) -> None:
        warned = 0.0
        while not self.over.wait(PATIENCE / 3):
            since, now = self.since, time.monotonic()
            if since is not None and now - max(since, warned) > PATIENCE:
                warned = now
                logger.warning(
                    "no batch for %.0f s; all %d loader workers are alive. The storage may be slow or the "
                    "images huge. If no batch arrives, stop (Ctrl-C) and try without loader workers (0)",
                    now - since,
                    self._workers,
                )
