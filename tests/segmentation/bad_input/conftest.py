"""Data and runs that the tests of bad input break."""

from pathlib import Path

import pytest

from tests.helpers.processes import run_here
from tests.helpers.s4p_runs import arguments, write_dataset
from tests.segmentation.bad_input.training import SHORT


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def trained(whole_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("trained") / "run"
    assert run_here("train", arguments(whole_root, work_dir, **SHORT)) == 0
    return work_dir
