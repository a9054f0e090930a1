"""The stand-in for mmcv's compiled extension."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from s5.compat import mmcv_ext

PURE = {**os.environ, "S5_MMCV_EXT": "pure", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def no_extension(monkeypatch):
    """No extension imported, and none to be found on disk."""
    monkeypatch.delitem(sys.modules, mmcv_ext.EXTENSION, raising=False)
    monkeypatch.setattr(mmcv_ext, "_find_compiled", lambda: None)
    # Undo what a test installs, also where nothing was there before.
    yield
    sys.modules.pop(mmcv_ext.EXTENSION, None)


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env=PURE, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_is_light():
    loaded = run(
        "import sys, s5; print([m for m in ('torch', 'mmcv', 'mmseg', 'mmengine') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


@pytest.mark.slow
def test_mmcv_and_mmseg_import_without_a_warning():
    """`mmcv.ops` asserts all of its names at import; mmcv warns where its operators are missing."""
    code = (
        "import warnings; warnings.filterwarnings('error', message='.*(Fail to import|mmcv-lite).*')\n"
        "import s5, mmcv.ops, mmseg.models, mmcv.utils, importlib.util, torch\n"
        "print(importlib.util.find_spec('mmcv._ext').name, mmcv.utils.collect_env()['MMCV Compiler'])\n"
        "try:\n"
        "    mmcv.ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2)\n"
        "except NotImplementedError as error:\n"
        "    print(error)\n"
    )
    first, second = run(code).splitlines()
    assert first == "mmcv._ext not compiled (PyTorch operators of S5)"
    assert "'roi_pool_forward'" in second
    assert "pip install --no-binary onedl-mmcv" in second


def test_spawned_workers_get_the_stand_in():
    code = (
        "import multiprocessing\n"
        "from s5.compat.mmcv_ext import in_use\n"
        "if __name__ == '__main__':\n"
        "    print(multiprocessing.get_context('spawn').Pool(1).apply(in_use))\n"
    )
    # `-c` has no file that a spawned process could run again, so that only the import of s5 can install it.
    assert run(code).strip() == "pure"


def test_every_name_exists_and_raises_an_error_that_names_it(no_extension, shared):
    mmcv_ext.install()
    names = (shared / "reference" / "mmcv_ext_names.txt").read_text().split()
    assert len(names) == 113
    for name in set(names) - set(mmcv_ext.IMPLEMENTED):
        with pytest.raises(NotImplementedError, match=f"'{name}' needs mmcv's compiled extension"):
            getattr(sys.modules["mmcv._ext"], name)()


def test_dunder_and_private_names_do_not_exist(no_extension):
    mmcv_ext.install()
    extension = sys.modules["mmcv._ext"]
    assert extension.__spec__.name == "mmcv._ext"
    for name in ("__path__", "__wrapped__", "_private"):
        assert not hasattr(extension, name)


def test_an_implemented_operator_is_called(no_extension, monkeypatch):
    monkeypatch.setitem(mmcv_ext.IMPLEMENTED, "nms", "operator:add")
    mmcv_ext.install()
    assert sys.modules["mmcv._ext"].nms(2, 3) == 5


def test_a_compiled_extension_is_left_in_place(no_extension, monkeypatch):
    monkeypatch.setattr(mmcv_ext, "_find_compiled", lambda: "a spec")
    assert mmcv_ext.install() == "compiled"
    assert "mmcv._ext" not in sys.modules
    monkeypatch.setenv("S5_MMCV_EXT", "pure")
    assert mmcv_ext.install() == "pure"
    assert isinstance(sys.modules["mmcv._ext"], mmcv_ext.PureExtension)


@pytest.mark.parametrize("cuda", ["13.2", "not available"])
def test_a_compiled_extension_without_cuda_is_refused_on_a_gpu(no_extension, monkeypatch, cuda):
    compiled = SimpleNamespace(get_compiling_cuda_version=lambda: cuda)
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    mmcv_ext.require_device("cpu")
    if cuda == "13.2":
        mmcv_ext.require_device("cuda")
    else:
        with pytest.raises(
            mmcv_ext.ExtensionError, match="no CUDA kernels: set S5_MMCV_EXT=pure.*FORCE_CUDA=1 pip"
        ):
            mmcv_ext.require_device("cuda")
    monkeypatch.setitem(sys.modules, "mmcv._ext", mmcv_ext.PureExtension("mmcv._ext"))
    mmcv_ext.require_device("cuda")


def test_asking_for_a_missing_compiled_extension_is_an_error(no_extension, monkeypatch):
    monkeypatch.setenv("S5_MMCV_EXT", "compiled")
    with pytest.raises(ImportError, match="S5_MMCV_EXT=compiled.*--no-binary onedl-mmcv"):
        mmcv_ext.install()


def test_asking_for_the_stand_in_too_late_is_an_error(no_extension, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv._ext", sys)
    monkeypatch.setenv("S5_MMCV_EXT", "pure")
    with pytest.raises(ImportError, match="already imported; import s5 before mmcv"):
        mmcv_ext.install()


def test_an_unknown_choice_lists_the_known_ones(no_extension, monkeypatch):
    monkeypatch.setenv("S5_MMCV_EXT", "fast")
    with pytest.raises(ValueError, match="S5_MMCV_EXT='fast': must be one of auto, pure, compiled"):
        mmcv_ext.install()


def test_what_is_in_use_is_logged(no_extension, caplog):
    with caplog.at_level("INFO"):
        mmcv_ext.install()
    assert "mmcv operators: pure" in caplog.text
