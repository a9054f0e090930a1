"""Checks without PyTorch: processor, memory, disk, compiler, Python and packages."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s5.command import usable_cpus
from s5.doctor import ROOT, Finding, describe, ok

if TYPE_CHECKING:
    from packaging.requirements import Requirement


SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
FEW_FILES = 1024
LITTLE_MEMORY = 4 * GIB
LITTLE_DISK = 10 * GIB
LITTLE_SHARED_MEMORY = 2**20  # for the semaphores of queues

INSTALL = "bash scripts/env.sh installs tested versions"
FORK = "onedl-"
# Modules whose name differs from that of the package.
MODULES = {
    "huggingface-hub": "huggingface_hub",
    "opencv-python": "cv2",
    "pillow": "PIL.Image",
    "pyyaml": "yaml",
    "onedl-mmdetection": "mmdet",
    "onedl-mmsegmentation": "mmseg",
}
# Other packages that provide the same module.
ALSO = {
    "opencv-python": ["opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"]
}
_ENLARGE = "docker run --shm-size=8g or --ipc=host; or data.workers=0 (workers=0), which needs none"
_NO_PACKAGING = "pip install packaging, and run this again"


def check_processor(chosen: str) -> Iterator[Finding]:
    """Cores that this process may use."""
    total, usable = os.cpu_count() or 1, usable_cpus()
    text = f"{_processor_name()}, {usable} of {total} cores usable"
    quota = cpu_quota()
    if quota is not None and quota < usable:
        whole = max(1, int(quota))
        advice = (
            f"set OMP_NUM_THREADS={whole}, and loader workers (data.workers, workers) to {whole} or fewer"
        )
        yield Finding("warning", "processor", f"{text}, but the CPU quota is {quota:g}", advice)
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
            advice = "close other programs or raise the limit; or use a small backbone and few loader workers"
            yield Finding("warning", "memory", text, advice)
        else:
            yield ok("memory", text)
    yield _shared_memory()


def check_files(chosen: str) -> Iterator[Finding]:
    """Free disk space in the current folder, and the limit of open files."""
    usage = shutil.disk_usage(".")
    text = f"{usage.free / GIB:.1f} GiB free in the current folder"
    if not os.access(".", os.W_OK):
        advice = "choose a writable output folder with --work-dir"
        yield Finding("warning", "disk", "the current folder is not writable", advice)
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
        yield ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} at most")


def check_compiler(chosen: str) -> Iterator[Finding]:
    """Requirements of `torch.compile`: C and C++ compilers and the Python headers."""
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
            "needed only for model.compile: true: install a compiler and the headers of this Python "
            "(apt-get install build-essential python3-dev)"
        )
        yield Finding("warning", "C compiler", f"missing: {', '.join(missing)}", advice)
    else:
        yield ok("C compiler", ", ".join(found))
    yield ok("Triton", _triton())


def cpu_quota() -> float | None:
    """CPU quota of the container, in CPUs; None without a limit."""
    limits = [text.split() for text in _cgroup_files("cpu.max")]
    quotas = [int(parts[0]) / int(parts[1]) for parts in limits if len(parts) == 2 and parts[0] != "max"]
    old = [_read(CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if all(text.isdigit() for text in old):  # without a limit, the quota is -1
        quotas.append(int(old[0]) / int(old[1]))
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Memory limit of the container in bytes; None without a limit."""
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
    """Contents of a file in the cgroup (v2) of this process and its parents."""
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


def commit() -> str:
    """The commit of a checkout and whether it has local changes; empty if unknown."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", ROOT, *command.split()], capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
            for command in ("rev-parse --short HEAD", "status --porcelain --untracked-files=no")
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {head}{' with changes' if changed else ''}"


def check_python(chosen: str) -> Iterator[Finding]:
    """Python and the operating system."""
    libc = " ".join(platform.libc_ver())
    here = (
        f"{platform.python_version()}; {platform.system()} {platform.release()}, {platform.machine()}, {libc}"
    )
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        here += ", in a container"
    supported, requirements = declared()
    if not requirements:
        advice = "pip install -e . in the folder of S5, or bash scripts/env.sh"
        yield Finding("warning", "S5", "not installed, so versions cannot be checked", advice)
    try:
        from packaging.specifiers import SpecifierSet

        fits = SpecifierSet(supported).contains(platform.python_version(), prereleases=True)
    except ImportError:
        yield Finding("warning", "Python", f"{here}; the range {supported} was not checked", _NO_PACKAGING)
        return
    if fits:
        yield ok("Python", f"{here} (supported: {supported})")
    else:
        yield Finding(
            "error", "Python", here, f"S5 needs {supported}: create an environment with such a Python"
        )


def required() -> dict[str, str]:
    """Requirements of S5 by package name."""
    names = {line: re.split(r"[^\w.-]", line)[0] for line in declared()[1] if "extra ==" not in line}
    return {name: line for line, name in names.items()}


def check_package(line: str, chosen: str) -> Iterator[Finding]:
    """A required package, given by its requirement."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("error", "packaging", f"not installed; {line} was not checked", _NO_PACKAGING)
        return
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate():
        yield _check_package(requirement)
        yield from _check_original(requirement.name)


def declared() -> tuple[str, list[str]]:
    """The supported Python range and all requirements declared by S5; empty if unknown."""
    project = ROOT / "pyproject.toml"
    if sys.version_info >= (3, 11) and project.is_file():
        import tomllib

        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return table["requires-python"], table["dependencies"]
    try:
        about = metadata("s5")
    except PackageNotFoundError:
        return "", []
    return about["Requires-Python"], about.get_all("Requires-Dist") or []


def _check_package(requirement: "Requirement") -> Finding:
    name, supported = requirement.name, str(requirement.specifier)
    installed = installed_version(name)
    if installed is None:
        return Finding("error", name, f"not installed; S5 needs {supported}", INSTALL)
    try:
        module = import_module(MODULES.get(name, name.removeprefix(FORK)))
        TRIALS.get(name, str)(module)
    except BaseException as error:
        advice = next((text for part, text in ADVICE.items() if part in str(error)), INSTALL)
        return Finding("error", name, f"{installed} does not work: {describe(error)}", advice)
    installed = _with_build(installed, module)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding("warning", name, f"{installed} is outside the supported range {supported}", INSTALL)
    return ok(name, f"{installed} (supported: {supported})")


def _check_original(name: str) -> Iterator[Finding]:
    """Detect the original package of a fork, which installs to the same folder."""
    if not name.startswith(FORK):
        return
    plain = name.removeprefix(FORK)
    for original in (plain, f"{plain}-full", f"{plain}-lite"):
        if installed := _version(original):
            yield Finding(
                "warning",
                original,
                f"{installed} is installed as well as {name}; they overwrite each other's files",
                f"pip uninstall {original}, then pip install --force-reinstall --no-deps {name}",
            )


def installed_version(name: str) -> str | None:
    """Version of a package, or of another one that provides the same module."""
    return next(filter(None, map(_version, (name, *ALSO.get(name, [])))), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _with_build(installed: str, module: Any) -> str:  # noqa: ANN401
    """The version with the build tag, such as 2.15.0+cu132, which only the module has."""
    own = str(getattr(module, "__version__", ""))
    return own if own.startswith(f"{installed}+") else installed


def _try_torch(torch: Any) -> None:  # noqa: ANN401
    import numpy as np

    torch.from_numpy(np.zeros(1))


def _try_torchvision(torchvision: Any) -> None:  # noqa: ANN401
    import torch

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def _try_opencv(cv2: Any) -> None:  # noqa: ANN401
    import numpy as np

    _, data = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))
    cv2.imdecode(data, cv2.IMREAD_COLOR)


# Tests of packages beyond importing them.
TRIALS: dict[str, Callable[[Any], object]] = {
    "torch": _try_torch,
    "torchvision": _try_torchvision,
    "opencv-python": _try_opencv,
    "tensorboard": lambda _: import_module("torch.utils.tensorboard"),
}
_CUDA_LIBRARIES = (
    f"CUDA libraries of torch are missing, or LD_LIBRARY_PATH hides them: unset it, or {INSTALL}"
)
# Advice by part of an error message.
ADVICE = {
    "torchvision::nms": "torchvision does not match this torch: install both together, "
    "pip install --force-reinstall torch torchvision (versions: requirements.txt)",
    "libGL": "OpenCV's desktop build needs display libraries: pip uninstall opencv-python, then "
    "pip install --force-reinstall opencv-python-headless; bash scripts/env.sh does this",
    "Numpy is not available": f"torch was built for another NumPy: {INSTALL}",
    "libcu": _CUDA_LIBRARIES,
    "libnv": _CUDA_LIBRARIES,
}
