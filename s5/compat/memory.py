"""Memory of this process: its peak, and how it is kept."""

import ctypes
import platform
import re
import resource
from pathlib import Path

import torch

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4

_STATUS = Path("/proc/self/status")


def keep_freed_memory() -> bool:
    """From now on take all blocks from the heap of this process, and never give its end back.

    The activations of training are large, and glibc takes large blocks from the operating system one by one
    and gives them back when they are freed; so every step fetches them again, page by page. On a CPU that is
    an eighth of a step.

    The process stays at its peak memory, which is a little higher than otherwise as holes between blocks
    remain.

    Returns:
        Whether it has an effect: only with the C library glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of a GPU the allocator's, of a CPU what is resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # What getrusage says starts from the peak of the process that started this one.
    status = _STATUS.read_bytes() if _STATUS.exists() else b""
    own = re.search(rb"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return 1024 * (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
