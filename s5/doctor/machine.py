"""The machine, without PyTorch: processor, memory, files, compiler."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from s5.doctor.findings import Finding, ok

SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
FEW_FILES = 1024
LITTLE_MEMORY = 4 * GIB
LITTLE_DISK = 10 * GIB
LITTLE_SHARED_MEMORY = 2**20  # for the semaphores of queues


def check_processor(chosen: str) -> Iterator[Finding]:
    """Cores that this process may use."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    text = f"{_processor_name()}, {usable} of {total} cores usable"
    quota = cpu_quota()
    if quota is not None and quota < usable:
        whole = max(1, int(quota))
        advice = (
            f"set OMP_NUM_THREADS={whole}, and loader workers (data.workers, workers) to {whole} or fewer"
        )
        yield Finding("warning", "processor", f"{text}, but time of {quota:g} only", advice)
    else:
        yield ok("processor", text)


def check_memory(chosen: str) -> Iterator[Finding]:
    """Main memory and /dev/shm."""
    total, free = (_meminfo(name) for name in ("MemTotal", "MemAvailable"))
    if total is None or free is None:
        yield ok("memory", "size unknown on this system")
    else:
        limit = memory_limit()
        text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if limit is not None and limit < total:
            text += f", container limited to {limit / GIB:.1f} GiB"
        if min(free, limit or free) < LITTLE_MEMORY:
            advice = "end other programs or raise the limit; or use a small backbone and few loader workers"
            yield Finding("warning", "memory", text, advice)
        else:
            yield ok("memory", text)
    yield _shared_memory()


def check_files(chosen: str) -> Iterator[Finding]:
    """Space in the current folder, and the number of files that may be open."""
    usage = shutil.disk_usage(".")
    text = f"{usage.free / GIB:.1f} GiB free in the current folder"
    if not os.access(".", os.W_OK):
        advice = "choose an output folder that can be written, with --work-dir"
        yield Finding("warning", "disk", "the current folder cannot be written", advice)
    elif usage.free < LITTLE_DISK:
        advice = "a checkpoint of ViT-L with its optimizer takes 4 GB, and several are kept; see --work-dir"
        yield Finding("warning", "disk", text, advice)
    else:
        yield ok("disk", text)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        advice = f"ulimit -n {FEW_FILES if hard == resource.RLIM_INFINITY else min(hard, 8 * FEW_FILES)}"
        yield Finding("warning", "open files", f"{soft} at most", advice)
    else:
        yield ok("open files", "any number" if soft == resource.RLIM_INFINITY else f"{soft} at most")


def check_compiler(chosen: str) -> Iterator[Finding]:
    """What ``torch.compile`` needs: compilers for C and C++, and the headers of Python."""
    found: list[str] = []
    missing: list[str] = []
    for variable, names in (("CC", ("gcc", "clang", "cc")), ("CXX", ("g++", "clang++", "c++"))):
        wanted = (os.environ[variable],) if os.environ.get(variable) else names
        name = next((name for name in wanted if shutil.which(name.split()[0])), None)
        (found if name else missing).append(name or " or ".join(wanted))
    header = Path(sysconfig.get_path("include")) / "Python.h"
    (found if header.is_file() else missing).append("Python.h")
    if missing:
        advice = (
            "only model.compile: true needs them: install a compiler and the headers of this Python "
            "(apt-get install build-essential python3-dev), or leave it false"
        )
        yield Finding("warning", "C compiler", f"missing: {', '.join(missing)}", advice)
    else:
        yield ok("C compiler", ", ".join(found))
    yield ok("Triton", _triton())


def cpu_quota() -> float | None:
    """Processors' worth of time that the container may use; None without a limit."""
    limits = [text.split() for text in _cgroup_files("cpu.max")]
    quotas = [int(parts[0]) / int(parts[1]) for parts in limits if len(parts) == 2 and parts[0] != "max"]
    old = [_read(CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if all(text.isdigit() for text in old):  # without a limit, the quota is -1
        quotas.append(int(old[0]) / int(old[1]))
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Bytes that the container may use; None without a limit."""
    texts = [*_cgroup_files("memory.max"), _read(CGROUP / "memory" / "memory.limit_in_bytes")]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        if platform.system() != "Linux":
            return ok("/dev/shm", "none, as usual on this system")
        return Finding("error", "/dev/shm", "missing: loader workers cannot start", _ENLARGE)
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
    if usage.free < LITTLE_SHARED_MEMORY:
        return Finding("error", "/dev/shm", f"{text}: loader workers cannot start", _ENLARGE)
    return ok("/dev/shm", text)


_ENLARGE = "docker run --shm-size=8g or --ipc=host; or data.workers=0 (workers=0), which needs none"


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none; only model.compile: true on a GPU needs it"


def _processor_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _meminfo(name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _cgroup_files(name: str) -> list[str]:
    """A file of the control group of this process and of all above it (version 2)."""
    groups = _read(Path("/proc/self/cgroup")).splitlines()
    own = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    folder = CGROUP / own
    folders = [part for part in (folder, *folder.parents) if part.is_relative_to(CGROUP)]
    return [text for part in folders if (text := _read(part / name))]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
