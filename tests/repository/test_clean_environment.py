"""An environment with what requirements.txt asks for and nothing else, without a compiled extension of mmcv.

Installing one from the package index takes 5 GB and many minutes, so it is put together from what is
installed here: a new virtual environment whose site-packages hold links to the files of the distributions
that requirements.txt names, and of those that they require in turn, as their metadata says. Whatever else
happens to be installed is not there (the tools of requirements-dev.txt, say), and neither is `mmcv._ext`
where mmcv was compiled. `scripts/test.sh` in a clone, with no environment active, is the same with real
installations.
"""

import importlib.metadata
import subprocess
import sysconfig
import venv
from collections.abc import Collection, Iterable
from importlib.metadata import Distribution
from pathlib import Path, PurePath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COMPILED = "mmcv/_ext.*"
SCRIPT = """
import importlib
import multiprocessing
import pkgutil
import sys

import s5
import mmcv.ops
import torch

def use():
    boxes = torch.tensor([[5.0, 5, 4, 2, 0.1], [5, 5, 4, 2, 0.1 + torch.pi], [20, 20, 4, 2, 0.1]])
    _, kept = mmcv.ops.nms_rotated(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
    rois = torch.cat((torch.zeros(3, 1), boxes), dim=1)
    pooled = mmcv.ops.RoIAlignRotated(2, 1.0)(torch.ones(1, 1, 32, 32), rois)
    return kept.tolist(), mmcv.ops.box_iou_rotated(boxes, boxes).sum().item(), pooled.sum().item()

if __name__ == "__main__":
    import mmdet.models
    import mmrotate.models
    import mmseg.models
    from s5.compat.mmcv_ext import PureExtension, in_use
    for module in pkgutil.walk_packages(s5.__path__, "s5."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert isinstance(sys.modules["mmcv._ext"], PureExtension)
    here, there = use(), multiprocessing.get_context("spawn").Pool(1).apply(use)
    assert here == there, (here, there)
    files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
    print(in_use(), *here, sep="\\n")
    print(*files, sep="\\n", file=open(sys.argv[1], "w"))
"""


def required(lines: Iterable[str]) -> tuple[dict[str, Distribution], list[str]]:
    """Distributions that requirements ask for, directly or not, and the names of those not installed."""
    found: dict[str, Distribution] = {}
    missing = []
    waiting = [Requirement(line) for line in lines]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        name = canonicalize_name(requirement.name)
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        for further in map(Requirement, found[name].requires or ()):
            if not further.marker or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return found, missing


def named_by(requirements: Path) -> list[str]:
    """The lines of a requirements file that name a distribution for this Python."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    lines = [line for line in lines if line and line[0] not in "-."]
    return [line for line in lines if not (marker := Requirement(line).marker) or marker.evaluate()]


def link(source: Path, target: Path, wanted: Collection[PurePath], other: Collection[PurePath]) -> None:
    """Link `wanted` files, relative to `source`, into `target`; folders without an `other` file whole."""
    target.mkdir(exist_ok=True)
    shared = {path.parts[0] for path in other}
    for name in {path.parts[0] for path in wanted} - {"..", "__pycache__"}:
        if name not in shared:
            (target / name).symlink_to(source / name)
            continue
        parts = (
            [path.relative_to(name) for path in paths if path.parts[0] == name] for paths in (wanted, other)
        )
        link(source / name, target / name, *parts)


@pytest.fixture(scope="module")
def python(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment, in which S5 is installed as `pip install -e` does it."""
    distributions, missing = required(named_by(repository / "requirements.txt"))
    assert not missing
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    library = next((folder / "lib").glob("python*/site-packages"))
    everything = {canonicalize_name(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    places = {Path(distribution.locate_file("")) for distribution in distributions.values()}
    for place in places:
        wanted, other = [], []
        for name, distribution in everything.items():
            if Path(distribution.locate_file("")) == place:
                for path in distribution.files or ():
                    to = wanted if name in distributions and not path.match(COMPILED) else other
                    to.append(PurePath(path))
        link(place, library, wanted, other)
    (library / "s5.pth").write_text(f"{repository}\n")
    return folder / "bin/python"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    # -I: no PYTHONPATH and no packages of the user
    return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, cwd="/", timeout=300)


def test_has_neither_a_compiled_extension_nor_what_is_not_required(python: Path) -> None:
    code = "from importlib.util import find_spec as f; print(f('pytest'), f('mmcv').origin)"
    missing, origin = run(python, "-c", code).stdout.strip().split(" ", 1)
    assert missing == "None"
    mmcv = Path(origin).parent
    assert python.parents[1] in mmcv.parents and (mmcv / "ops").is_dir() and not list(mmcv.glob("_ext*"))


@pytest.mark.slow
def test_mmrotate_and_all_of_s5_run_there_in_spawned_workers_too(python: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run(python, str(script), str(tmp_path / "files"))
    assert done.returncode == 0, done.stderr
    assert "Fail to import" not in done.stderr
    in_use, kept, overlaps, pooled = done.stdout.splitlines()
    assert (in_use, kept) == ("pure", "[1, 2]")
    assert float(overlaps) == pytest.approx(5) and float(pooled) == pytest.approx(12)
    outside = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    loaded = [Path(file) for file in (tmp_path / "files").read_text().splitlines()]
    assert any("mmrotate" in path.parts for path in loaded)
    assert not [path for path in loaded if outside & set(path.parents)]
