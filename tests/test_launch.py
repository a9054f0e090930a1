"""Starting a process: device, output folder, log, and agreement of the processes."""

import logging
import re
import signal
from pathlib import Path

import pytest
import torch

from s5 import launch
from s5.launch import Launch, LaunchError
from tests.helpers.processes import STOPPED, Process, start_ranks, wait_until

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
    with launch.main_process_first(MAIN) as first:
        assert first
    with pytest.raises(ZeroDivisionError), launch.main_process_first(MAIN):
        raise ZeroDivisionError


def start_turn(folder: Path, block: str, timeout: float = 60) -> list[Process]:
    """Two processes in which the main one runs a block of code first, then both meet in a collective."""
    path = folder / "turn.py"
    path.write_text(
        "import time, torch\n"
        "from datetime import timedelta\n"
        "from s5 import launch\n"
        "from s5.command import run_command\n"
        "def main():\n"
        f"    launch.COLLECTIVE_TIMEOUT = timedelta(seconds={timeout})\n"
        "    place = launch.start('cpu')\n"
        "    for turn in range(2):\n"
        "        with launch.main_process_first(place) as first:\n"
        "            print('turn', turn, flush=True)\n"
        "            if first:\n"
        f"                {block}\n"
        "    ranks = torch.tensor([place.rank])\n"
        "    torch.distributed.all_reduce(ranks)\n"
        "    print('sum', ranks.item())\n"
        "    return 0\n"
        "raise SystemExit(run_command(main))\n"
    )
    return start_ranks(path, [], folder, 2)


def test_the_main_process_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    for process in start_turn(tmp_path, "time.sleep(4 * turn)", timeout=3):
        assert process.wait() == 0, process.text()
        assert "sum 1" in process.text()


@pytest.mark.parametrize("end", ["error", "kill"])
def test_end_of_the_main_process_ends_the_others(tmp_path: Path, end: str) -> None:
    block = "raise launch.LaunchError('bad data')" if end == "error" else "time.sleep(600)"
    ranks = start_turn(tmp_path, block)
    if end == "kill":
        for process in ranks:
            wait_until(lambda process=process: "turn 0" in process.text(), process)
        ranks[0].send(signal.SIGKILL)
    assert ranks[0].wait() == (1 if end == "error" else -signal.SIGKILL)
    assert ranks[1].wait(20) == 1
    assert re.search(STOPPED, ranks[1].text())
    assert "Traceback" not in ranks[1].text()
