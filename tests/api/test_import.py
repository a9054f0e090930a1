"""`import s5` takes no time, and finds its names when they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import s5

HEAVY = ("torch", "numpy", "mmengine", "mmcv", "mmdet", "rasterio", "cv2", "pydantic", "s5.api")


def printed(code: str, folder: Path) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout.strip()


def test_import_loads_nothing_heavy(repository: Path) -> None:
    code = f"import sys, s5; print([name for name in {HEAVY} if name in sys.modules])"
    assert printed(code, repository) == "[]"


def test_import_installs_the_operators_of_mmcv(repository: Path) -> None:
    code = "import sys, s5; print(s5.compat.mmcv_ext.in_use() == 'compiled' or 'mmcv._ext' in sys.modules)"
    assert printed(code, repository) == "True"


def test_detection_does_not_reach_segmentation_and_preparation(repository: Path) -> None:
    others = "[m for m in sys.modules if m.startswith(('s5.segmentation', 's5.data.prepare.pipeline'))]"
    code = f"import sys, s5.detection.predict; print({others})"
    assert printed(code, repository) == "[]"


def test_names_are_found_and_listed() -> None:
    assert {"load", "create_model", "list_backbones", "api"} <= set(dir(s5))
    for name in dir(s5):
        assert getattr(s5, name) is not None
    with pytest.raises(AttributeError, match="module 's5' has no attribute 'lode'"):
        _ = s5.lode
