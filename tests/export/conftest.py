"""Tiny random models and the files that they are exported to."""

import sys
from pathlib import Path

import pytest
import torch

import s5
from s5.export import ExportOptions, export_model
from s5.export.plan import make_plan
from s5.export.run import make_graph, record, write_files
from tests.detection.predict.det_models import write_detector
from tests.helpers.trained_models import table, write_checkpoint

# Of probabilities: rounding depends on the CPU, runtimes add in another order, and the classifiers of these
# models multiply the differences by 20.
TOLERANCE = 2e-4
TABLES = {"roads": ["other", "main road"], "land": ["water", "field", "wood"]}


@pytest.fixture(scope="session")
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentor of two tasks with experts."""
    path = tmp_path_factory.mktemp("segmentor") / "model.pth"
    write_checkpoint(path, {name: table(name, classes) for name, classes in TABLES.items()})
    return path


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of two tasks with experts, with neither equal scores nor boxes of thousands of pixels."""
    path = tmp_path_factory.mktemp("detector") / "model.pth"
    write_detector(path)
    content = torch.load(path)
    for name, tensor in content["state_dict"].items():
        if name.endswith("rpn_cls.weight"):
            tensor /= 15
        if name.endswith("rpn_reg.weight"):
            tensor /= 3
    torch.save(content, path)
    return path


def exported(checkpoint: Path, out: Path, **options: object) -> Path:
    """Export to a file; returns it."""
    export_model(s5.load(checkpoint, "cpu", "fp32"), out, ExportOptions(**options))
    return out


def recorded_once(checkpoint: Path, folder: Path, name: str, **options: object) -> Path:
    """Record a model and write it as ONNX and, beside it, `torch.export`; returns the former."""
    plan = make_plan(s5.load(checkpoint, "cpu", "fp32"), ExportOptions(**options))
    graph = make_graph(plan, checkpoint)
    recorded = record(graph, plan)
    for suffix in (".pt2", ".onnx"):
        write_files(recorded, graph, plan, folder / f"{name}{suffix}")
    return folder / f"{name}.onnx"


@pytest.fixture(scope="session")
def any_size(segmentor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task for images of any size."""
    require_onnx()
    return recorded_once(segmentor, tmp_path_factory.mktemp("any_size"), "land", task="land")


@pytest.fixture(scope="session")
def tiles(segmentor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks for QGIS."""
    require_onnx()
    out = tmp_path_factory.mktemp("tiles") / "both.onnx"
    return exported(segmentor, out, task="all", qgis=True, resolution=30.0)


@pytest.fixture(scope="session")
def ships(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task of the detector."""
    require_onnx()
    return recorded_once(detector, tmp_path_factory.mktemp("ships"), "ships", task="harbour")


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the optional packages."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)


def require_onnx() -> None:
    """Skip where the optional packages are missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
