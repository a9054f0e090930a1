"""Memory of a training process on a CPU stays with the process.

Activations are large, and glibc takes large blocks from the operating system one by one and gives them back
when they are freed; so every step fetches them again, page by page. On a CPU that is an eighth of a step.
"""

import ctypes
import platform

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """From now on take all blocks from the heap of this process, and never give its end back.

    The process stays at its peak memory, which is a little higher than otherwise as holes between blocks
    remain.

    Returns:
        Whether it has an effect: only with the C library glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))
