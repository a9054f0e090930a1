"""Detectors, images and a run that the tests of `predict.py` and `test.py` share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from s5.detection.network import DetectionModel
from tests.detection.predict.det_models import evaluate, write_detector, write_pictures
from tests.helpers import shallow_vit
from tests.helpers.det_runs import script, write_config, write_datasets


@pytest.fixture(autouse=True, scope="module")
def _all_blocks() -> Iterator[None]:
    """What the random detectors find, and where, is chosen for twelve blocks."""
    with shallow_vit.uninstalled():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "vit_t_moe_det.pth"


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> DetectionModel:
    with shallow_vit.uninstalled():
        return write_detector(checkpoint)


@pytest.fixture
def images(tmp_path: Path, model: DetectionModel) -> Path:
    return write_pictures(tmp_path / "images")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that runs start from."""
    path = tmp_path_factory.mktemp("start") / "vit_t_moe_det.pth"
    with shallow_vit.uninstalled():
        write_detector(path, {"a": ("box",), "b": ("box",)})
    return path


@pytest.fixture(scope="session")
def config(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in which the network finds some objects: part of what it finds is true, part of it is not."""
    config = write_config(write_datasets(tmp_path_factory.mktemp("data")))
    found = tmp_path_factory.mktemp("found")
    with shallow_vit.uninstalled():
        assert evaluate(config, start, found / "work", "--out", found) == 0
    for text, labels in (("a", "a/labelTxt"), ("b", "b/whole")):
        for path in sorted((found / text).glob("*.txt")):
            lines = path.read_text().splitlines()[1::2]
            objects = [" ".join(line.split()[:10]) for line in lines]
            (config.parent / labels / path.name).write_text("\n".join(objects) + "\n")
    return config


@pytest.fixture(scope="session")
def trained(config: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose weights are nearly those it started from."""
    work_dir = tmp_path_factory.mktemp("runs") / "run"
    changes = ["optim.lr=1e-9", "schedule.epochs=2", "schedule.milestones=[1]", "schedule.val_interval=2"]
    args = [str(config), "--device", "cpu", "--work-dir", str(work_dir), "--load-from", str(start)]
    with shallow_vit.uninstalled():
        assert script().main([*args, "--cfg-options", *changes]) == 0
    return work_dir
