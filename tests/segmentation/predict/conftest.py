"""A trained model and images that the tests of `predict.py` share."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from s5.data.image_io import write_image
from tests.helpers.trained_models import write_checkpoint
from tests.segmentation.predict.predicting import TABLES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("model") / "vit_t_moe_mdf.pth"


@pytest.fixture(scope="module")
def model(checkpoint):
    torch.manual_seed(0)
    return write_checkpoint(checkpoint, TABLES)


@pytest.fixture
def images(tmp_path, model) -> Path:
    """Three images of different sizes and formats in folders."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 50)), ("deep/b.c.jpg", (32, 32)), ("deep/er/d.png", (20, 70))):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        write_image(tmp_path / "images" / name, cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC))
    return tmp_path / "images"
