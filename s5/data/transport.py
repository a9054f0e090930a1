"""Batches on their way from loader workers to the main process, without /dev/shm.

PyTorch moves tensors through /dev/shm, which has 64 MB in a container by default, and does so in a background
thread of the worker: a batch that does not fit is dropped there, and the main process waits for it forever.
Here the worker itself, before it queues the batch, writes the tensors into one anonymous file in memory
(``memfd_create``), which only the memory of the machine limits. So whatever goes wrong is an error of that
batch, which the main process raises. It also takes one file descriptor per batch instead of one per tensor.

Where the kernel has no ``memfd_create`` (macOS, some sandboxes), it is an unnamed temporary file, in /dev/shm
if there is one.
"""

import io
import math
import mmap
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from s5.data.errors import LoaderError

SHARED_MEMORY = Path("/dev/shm")
HOW_TO_ENLARGE = (
    "Give the container a larger /dev/shm (docker run --shm-size=8g or --ipc=host; in Kubernetes an emptyDir "
    "of medium Memory mounted there)"
)
FEWER_WORKERS = "use fewer loader workers (data.workers or workers in the configuration; 0 needs none)"
_ALIGNMENT = 64  # bytes; that of PyTorch's own allocator


class PackingCollate:
    """A collate function whose batches are packed where it runs in a loader worker.

    Args:
        collate: makes the batch; must be picklable where workers are spawned.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> Any:  # noqa: ANN401
        """The batch of ``collate``; in a worker as a :class:`PackedBatch`."""
        batch = self.collate(samples)
        return batch if get_worker_info() is None else PackedBatch(batch)


class PackedBatch:
    """A batch whose tensors are in a memory file; unpickled in another process, it is the batch itself.

    Tensors keep their strides if these are dense in any order of the dimensions (channels-last, say).

    Args:
        batch: any picklable structure with tensors in it.

    Raises:
        LoaderError: the tensors do not fit; says what to do.
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
        """Rebuild the batch, not this object."""
        return _unpack, (self._structure, self._file, self._size)


class _Pickler(pickle.Pickler):
    """Pickles a structure; its tensors go to a file, of which ``size`` bytes are used."""

    def __init__(self, structure: BinaryIO, file: io.FileIO) -> None:
        super().__init__(structure, pickle.HIGHEST_PROTOCOL)
        self.size = 0
        self._file = file

    def persistent_id(self, value: Any) -> tuple | None:  # noqa: ANN401
        """Where a tensor starts in the file, and how to read it."""
        if not isinstance(value, torch.Tensor):
            return None
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        dense = value.detach().permute(order).contiguous()
        start = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        padding, self.size = start - self.size, start + dense.nbytes
        self._write(memoryview(bytes(padding)))
        flat = dense.flatten()
        if flat.stride(0) != 1:  # of no or one element, any stride is contiguous, but not viewed as bytes
            flat = flat.clone(memory_format=torch.contiguous_format)
        self._write(flat.view(torch.uint8).numpy().data)
        inverse = [order.index(dimension) for dimension in range(len(order))]
        return start, dense.dtype, tuple(dense.shape), inverse

    def _write(self, data: memoryview) -> None:
        while data:  # one call writes 2 GB at most
            data = data[self._file.write(data) :]


class _Unpickler(pickle.Unpickler):
    """Reads what :class:`_Pickler` wrote; the tensors are views of ``memory`` and keep it alive."""

    def __init__(self, structure: BinaryIO, memory: mmap.mmap | None) -> None:
        super().__init__(structure)
        self._memory = memory

    def persistent_load(self, place: tuple) -> torch.Tensor:
        """The tensor at a place that :meth:`_Pickler.persistent_id` returned."""
        start, dtype, shape, inverse = place
        count = math.prod(shape)
        if count == 0 or self._memory is None:
            flat = torch.empty(0, dtype=dtype)
        else:
            flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start)
        return flat.view(shape).permute(inverse)


def _unpack(structure: bytes, file: Any, size: int) -> Any:  # noqa: ANN401
    """The batch. An error is returned, not raised: raised, it would end the thread that pins memory."""
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
                f"or this process has too many open files (ulimit -n). Give the run more of it, or "
                f"{FEWER_WORKERS}"
            ) from error
    except LoaderError:
        return ExceptionWrapper(where="in DataLoader worker's batch, on its arrival")


def _memory_file() -> io.FileIO:
    """A new empty file without a name, in memory where that is possible."""
    try:
        if memfd_works():
            return io.FileIO(os.memfd_create("s5_batch"), "w+")
        return tempfile.TemporaryFile(buffering=0, dir=_folder())
    except OSError as error:
        raise _does_not_fit(0, error) from error


@cache
def memfd_works() -> bool:
    """Whether batches need no file system: not on macOS, nor on old kernels or where a sandbox forbids it."""
    try:
        os.close(os.memfd_create("s5_batch"))
    except (AttributeError, OSError):
        return False
    return True


def _folder() -> Path:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def _does_not_fit(size: int, error: OSError) -> LoaderError:
    """The error of a batch of which ``size`` bytes were written or about to be."""
    problem = f"a batch of at least {size / 2**20:.1f} MiB cannot leave its loader worker ({error.strerror})"
    if memfd_works():
        return LoaderError(f"{problem}: memory or open files (ulimit -n) are used up; {FEWER_WORKERS}")
    folder = _folder()
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB are free in {folder}"
    remedy = HOW_TO_ENLARGE if folder == SHARED_MEMORY else "Set TMPDIR to a folder with more space"
    return LoaderError(f"{problem}: {free}. {remedy}, or {FEWER_WORKERS}")
