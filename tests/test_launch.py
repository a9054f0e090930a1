"""Starting a process: device, output folder, log, and agreement of the processes."""

import logging
from pathlib import Path

import pytest
import torch

from s5.engine import launch
from s5.engine.launch import Launch, LaunchError

MAIN = Launch(torch.device("cpu"), rank=0, world_size=1)
OTHER = Launch(torch.device("cpu"), rank=1, world_size=2)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_on_the_cpu() -> None:
    place = launch.start("cpu")
    assert place == MAIN and place.is_main and place.launcher == "none"
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:1")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(launch.start("auto").device) == device
    assert chosen == ([1] if gpus else [])


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (0, r"no GPU is visible to PyTorch; run with --device cpu"),
        (2, r"process 2 of this node has no GPU: 2 visible; start at most 2"),
    ],
)
def test_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, gpus: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(LaunchError, match=message):
        launch.start("cuda")


def test_output_folder_is_made_by_the_main_process_and_left_clean(tmp_path: Path) -> None:
    assert launch.make_work_dir(tmp_path / "a/b", OTHER) == tmp_path / "a/b"
    assert not (tmp_path / "a").exists()
    launch.make_work_dir(tmp_path / "a/b", MAIN)
    launch.make_work_dir(tmp_path / "a/b", MAIN)
    assert list((tmp_path / "a/b").iterdir()) == []


def test_log_is_continued_and_lines_come_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("s5.test")
    for line in ("first", "second"):
        launch.setup_logging(tmp_path, MAIN)
        log.info(line)
    text = (tmp_path / "train.log").read_text()
    assert text.count("INFO - first") == 1 and text.count("INFO - second") == 1
    assert capsys.readouterr().out == text


def test_other_processes_speak_only_of_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch.setup_logging(tmp_path, OTHER)
    logging.getLogger("s5.test").warning("all is well")
    logging.getLogger("s5.test").error("it is not")
    assert "well" not in (out := capsys.readouterr().out) and "it is not" in out
    assert not (tmp_path / "train.log").exists()


def test_error_in_the_main_part_is_raised() -> None:
    """With several processes, see test_distributed.py."""
    with launch.main_process_first(MAIN) as first:
        assert first
    with pytest.raises(ZeroDivisionError), launch.main_process_first(MAIN):
        raise ZeroDivisionError
