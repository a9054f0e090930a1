"""`import s5` takes no time, and finds its names when they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import s5

HEAVY = ("torch", "numpy", "mmengine", "mmcv", "mmdet", "rasterio", "cv2", "pydantic", "s5.api")


def test_import_loads_nothing_heavy(repository: Path) -> None:
    code = f"import sys, s5; print([name for name in {HEAVY} if name in sys.modules], 'mmcv._ext' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.startswith("[]")
    assert done.stdout.split()[-1] == "True" or s5.compat.mmcv_ext.in_use() == "compiled"


def test_prediction_of_detections_does_not_reach_the_preparation_of_loveda(repository: Path) -> None:
    code = "import sys, s5.detection.predict; print([m for m in sys.modules if 'loveda' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_found_and_listed() -> None:
    assert {"load", "create_model", "list_backbones", "api"} <= set(dir(s5))
    for name in dir(s5):
        assert getattr(s5, name) is not None
    with pytest.raises(AttributeError, match="module 's5' has no attribute 'lode'"):
        _ = s5.lode
