"""Python and the packages that S5 needs: versions against the supported ranges, and whether they work."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s5.doctor.findings import ROOT, Finding, describe, ok

if TYPE_CHECKING:
    from packaging.requirements import Requirement

INSTALL = "bash scripts/env.sh installs tested versions"
FORK = "onedl-"
# Names of modules that do not follow from those of the packages.
MODULES = {
    "opencv-python": "cv2",
    "pillow": "PIL.Image",
    "pyyaml": "yaml",
    "onedl-mmdetection": "mmdet",
    "onedl-mmsegmentation": "mmseg",
}
# Packages that bring the same module.
ALSO = {
    "opencv-python": ["opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"]
}


def commit() -> str:
    """The commit of a checkout, and whether files differ from it; empty where that is not known."""
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
        yield Finding("warning", "S5", "is not installed, so that no version could be compared", advice)
    try:
        from packaging.specifiers import SpecifierSet

        fits = SpecifierSet(supported).contains(platform.python_version(), prereleases=True)
    except ImportError:
        yield Finding("warning", "Python", f"{here}; the range {supported} was not compared", _NO_PACKAGING)
        return
    if fits:
        yield ok("Python", f"{here} (supported: {supported})")
    else:
        yield Finding(
            "error", "Python", here, f"S5 needs {supported}: make an environment with such a Python"
        )


def required() -> dict[str, str]:
    """What S5 requires, by the name of the package."""
    names = {line: re.split(r"[^\w.-]", line)[0] for line in declared()[1] if "extra ==" not in line}
    return {name: line for line, name in names.items()}


def check_package(line: str, chosen: str) -> Iterator[Finding]:
    """A package that S5 requires, by its requirement."""
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
    """The supported range of Python and all requirements, as S5 declares them; empty if nothing does."""
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


def _check_package(requirement: Requirement) -> Finding:
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
    """The package that a fork was made of writes to the same folder."""
    if not name.startswith(FORK):
        return
    plain = name.removeprefix(FORK)
    for original in (plain, f"{plain}-full", f"{plain}-lite"):
        if installed := _version(original):
            yield Finding(
                "warning",
                original,
                f"{installed} is installed as well as {name}, and one has overwritten files of the other",
                f"pip uninstall {original}, then pip install --force-reinstall --no-deps {name}",
            )


def installed_version(name: str) -> str | None:
    """Version of a package, or of another that brings the same module."""
    return next(filter(None, map(_version, (name, *ALSO.get(name, [])))), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _with_build(installed: str, module: Any) -> str:  # noqa: ANN401
    """The version with the build that only the module tells, 2.15.0+cu132 say."""
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


# What shows that a package works, beyond its import.
TRIALS: dict[str, Callable[[Any], object]] = {
    "torch": _try_torch,
    "torchvision": _try_torchvision,
    "opencv-python": _try_opencv,
    "tensorboard": lambda _: import_module("torch.utils.tensorboard"),
}
_CUDA_LIBRARIES = (
    f"libraries of CUDA that torch brings are missing, or LD_LIBRARY_PATH hides them: unset it, or {INSTALL}"
)
# What to do about errors, by a part of their message.
ADVICE = {
    "torchvision::nms": "torchvision does not fit this torch: install both together, "
    "pip install --force-reinstall torch torchvision (versions: requirements.txt)",
    "libGL": "OpenCV for desktops on a machine without one: pip uninstall opencv-python, then "
    "pip install --force-reinstall opencv-python-headless; bash scripts/env.sh does so",
    "Numpy is not available": f"torch was built for another NumPy: {INSTALL}",
    "libcu": _CUDA_LIBRARIES,
    "libnv": _CUDA_LIBRARIES,
}
_NO_PACKAGING = "pip install packaging, and run this again"
