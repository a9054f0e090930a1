"""Fixtures of the classes that inherit from `PredictorContract`."""

from pathlib import Path

import pytest

import s5
from s5.prediction.predictor import Predictor


@pytest.fixture(scope="class")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pth"
    request.cls().write(path)
    return path


@pytest.fixture(scope="class")
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Predictor:
    return s5.load(checkpoint, "cpu", "fp32", **request.cls.options)
