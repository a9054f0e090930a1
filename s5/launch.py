"""Process start-up: device, process group and logging, under torchrun or alone, on GPUs or CPUs."""

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
LONGEST_WAIT = timedelta(days=30)  # for one process that does long work while the others wait

_MAIN_PROCESS_TIMEOUT = timedelta(days=7)  # its death is noticed earlier; milliseconds must fit an int32
_DONE, _FAILED = "done", "failed"
_host_groups: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
_turns = count()  # numbers the uses of main_process_first, the same in all processes


class LaunchError(UserError, RuntimeError):
    """The run cannot start with the given options and environment."""


@dataclass(frozen=True)
class Launch:
    """Device and rank of this process.

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
    """Choose the device and join the process group defined by torchrun's environment variables, if any.

    Args:
        device: `cuda`, `cpu`, or `auto` (CUDA if a GPU is visible).

    Raises:
        LaunchError: CUDA is requested but unavailable, there are more processes than GPUs, or the port is
            taken.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if gpus == 0:
            raise LaunchError("no GPU is visible to PyTorch; run with --device cpu (train.sh: 0 GPUs)")
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
    """Return a Gloo group of all processes for exchanging objects in host memory and for long waits.

    NCCL would copy objects through GPU memory, and waiting processes would time out after
    :data:`COLLECTIVE_TIMEOUT`. All processes must call this.
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
    """Create an output folder and check that it is writable; `option` is the CLI option that sets it.

    Raises:
        LaunchError: The folder cannot be created or written.
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
        host_group()  # connection problems surface here instead of at the first validation
    except dist.DistNetworkError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LaunchError(f"cannot listen on or reach {address} ({error}); choose another port") from None
    except RuntimeError as error:  # of Gloo, often because another process has ended already
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"cannot connect to the other processes ({reason}); if one of them stopped, its message is in "
            f"the log"
        ) from error


def _leave_group() -> None:
    _host_groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def main_process_first(launch: Launch) -> Iterator[bool]:
    """Let the main process finish a block while the others wait; they raise an error if it fails.

    They wait on the rendezvous store instead of in a collective, because the block may take longer than
    :data:`COLLECTIVE_TIMEOUT`.

    Yields:
        Whether this is the main process.

    Raises:
        LaunchError: The main process raised an exception or died (raised in the other processes).
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
    """Whether `value` is the same in all processes; all must call this."""
    if launch.world_size == 1:
        return True
    values: list[str | None] = [None] * launch.world_size
    dist.all_gather_object(values, value)
    return len(set(values)) == 1
