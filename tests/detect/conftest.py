"""A detector and images that the tests of `predict.py` share."""

from pathlib import Path

import pytest
from det_models import write_detector, write_pictures

from s5.models.detection import DetectionModel


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "vit_t_moe_det.pth"


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> DetectionModel:
    return write_detector(checkpoint)


@pytest.fixture
def images(tmp_path: Path, model: DetectionModel) -> Path:
    return write_pictures(tmp_path / "images")
