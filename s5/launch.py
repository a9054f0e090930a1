"""Starting a process: device, process group, logging. Works under torchrun, alone, on GPUs and on CPUs."""

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from s5.errors import ESCAPE, UserError, is_utf8

LOG_FILE = "train.log"
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
LONGEST_WAIT = timedelta(days=30)  # for a process that works alone

_MAIN_PROCESS_TIMEOUT = timedelta(days=7)  # its end is noticed at once; in milliseconds it must fit an int32
_DONE, _FAILED = "done", "failed"
_host_groups: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
_turns = count()  # numbers the uses of main_process_first, the same in all processes


class LaunchError(UserError, RuntimeError):
    """The run cannot start as asked for."""


@dataclass(frozen=True)
class Launch:
    """Where this process runs.

    Attributes:
        device: Device of the model.
        rank: Global rank.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """Name of the launcher in mmengine."""
        return "pytorch" if self.world_size > 1 else "none"


ALONE = Launch(torch.device("cpu"), rank=0, world_size=1)


def start(device: str = "auto") -> Launch:
    """Choose the device and join the process group that torchrun's environment variables describe, if any.

    Args:
        device: `cuda`, `cpu`, or `auto` (CUDA where there is a GPU).

    Raises:
        LaunchError: CUDA was asked for and there is none, more processes than GPUs, or the port is taken.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if gpus == 0:
            raise LaunchError("no GPU is visible to PyTorch; run with --device cpu (train.sh: GPUS=0)")
        if local_rank >= gpus:
            raise LaunchError(
                f"process {local_rank} of this node has no GPU: {gpus} visible; start at most {gpus}"
            )
        torch.cuda.set_device(local_rank)
    chosen = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if world_size > 1 and not dist.is_initialized():
        _join_group("nccl" if device == "cuda" else "gloo")
    return Launch(chosen, int(os.environ.get("RANK", 0)), world_size)


def host_group() -> dist.ProcessGroup:
    """All processes, to exchange what is in host memory, and to wait for one that works for long.

    By NCCL, objects would go through the memory of the GPUs, and a process that waits would give up after
    :data:`COLLECTIVE_TIMEOUT`. All processes have to call it.
    """
    world = dist.group.WORLD
    if world not in _host_groups:
        _host_groups[world] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))
    return _host_groups[world]


def setup_logging(work_dir: Path, launch: Launch) -> None:
    """Send the package's log to the console (main process) and to `work_dir/train.log`."""
    logger = logging.getLogger("s5")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if launch.is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if launch.is_main:
        handlers.append(logging.FileHandler(work_dir / LOG_FILE, encoding="utf-8", errors=ESCAPE))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s", "%m/%d %H:%M:%S"))
        logger.addHandler(handler)


def make_work_dir(path: Path, launch: Launch, option: str = "--work-dir") -> Path:
    """Create an output folder and prove that it can be written; `option` is what chooses it.

    Raises:
        LaunchError: It cannot be created or written.
    """
    if not is_utf8(path.absolute()):
        raise LaunchError(f"{path}: not UTF-8, as TensorBoard and GDAL require; choose another {option}")
    if launch.is_main:
        probe = path / ".writable"
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"s5")
            probe.unlink()
        except OSError as error:
            raise LaunchError(
                f"{path}: the output folder cannot be written ({error.strerror or error}); "
                f"choose another {option}"
            ) from None
    return path


def _join_group(backend: str) -> None:
    try:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        atexit.register(_leave_group)
        host_group()  # what keeps the processes from it shows now, not at the first validation
    except dist.DistNetworkError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LaunchError(f"cannot listen on or reach {address} ({error}); choose another port") from None


def _leave_group() -> None:
    _host_groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def main_process_first(launch: Launch) -> Iterator[bool]:
    """Run a block that only the main process needs to act in; the others wait, and stop if it failed.

    They wait at the store by which the processes found each other, not in a collective: the block may take
    longer than :data:`COLLECTIVE_TIMEOUT`.

    Yields:
        Whether this is the main process.

    Raises:
        LaunchError: In the other processes, when the main process raised or died.
    """
    if launch.world_size == 1:
        yield True
        return
    store = dist.distributed_c10d._get_default_store()
    key = f"s5/main_process_first/{next(_turns)}"
    if not launch.is_main:
        yield False
        _wait_for_main_process(store, key)
        return
    outcome = _FAILED
    try:
        yield True
        outcome = _DONE
    finally:
        store.set(key, outcome)


def _wait_for_main_process(store: dist.Store, key: str) -> None:
    stopped = LaunchError("the main process stopped; its message is in the log")
    try:
        store.wait([key], _MAIN_PROCESS_TIMEOUT)
        outcome = store.get(key).decode()
    except dist.DistNetworkError as error:  # the store is gone with the main process or its launcher
        raise stopped from error
    if outcome != _DONE:
        raise stopped


def same_everywhere(value: str | None, launch: Launch) -> bool:
    """Whether all processes have the same value."""
    if launch.world_size == 1:
        return True
    values: list[str | None] = [None] * launch.world_size
    dist.all_gather_object(values, value)
    return len(set(values)) == 1
