"""Fixtures and settings shared by all tests."""

import ctypes
import gc
import logging
import platform
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scenes.dataset import Request, write_dataset
from tests.helpers import shallow_vit

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors lose time to a second thread, and one count everywhere keeps float sums reproducible.
    torch.set_num_threads(1)
    gc.disable()  # until all is imported, which stays
    shallow_vit.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with many slow tests first, so that at the end no process works on one while the others wait.
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what is imported stays: later collections need not look at it
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """Random weights that tests share do not depend on the tests before them."""
    if fixturedef.scope != "function":
        set_seed(zlib.crc32(fixturedef.argname.encode()))


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def _give_memory_back() -> Iterator[None]:
    """A training run in this process has told the allocator to keep all memory, and several add up."""
    yield
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_seed(0)
    log = logging.getLogger("s5")  # a run in an earlier test may have taken it over
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture
def real_vit_t() -> Iterator[None]:
    """The twelve blocks of `vit_t`, for tests of what ships; others have four."""
    with shallow_vit.uninstalled():
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with real images and golden files; absent in most places."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip(f"no {path}: this test needs the real images or golden files kept there")
    return path


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a few generated scenes of 64 px: 6 labeled, 8 unlabeled, 4 for validation.

    Shared by all tests: copy it before changing anything in it.
    """
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, Request(labeled=6, unlabeled=8, val=4, size=64))
    return root


@pytest.fixture
def root(whole_root: Path, tmp_path: Path) -> Path:
    """A copy of the module's `whole_root`, data that a test may break."""
    return shutil.copytree(whole_root, tmp_path / "data")
