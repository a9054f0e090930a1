"""Folders, disks and ports that fail, and the messages about them."""

import re
import resource
import socket
from pathlib import Path

import pytest

from s5 import launch
from s5.checkpoints.reading import read_checkpoint
from s5.command import run_command
from s5.compat.attention import BackendError
from s5.compat.mmcv_ext import ExtensionError
from s5.errors import CheckpointError, ConfigError, DataError
from s5.launch import LaunchError
from s5.training.hooks import NonFiniteLossError
from tests.helpers.processes import start, wait_until
from tests.helpers.s4p_runs import arguments, losses, options
from tests.segmentation.bad_input.training import VAL, train, write_weights


def test_output_folder_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LaunchError, match=rf"{tmp_path}/file/run: .*cannot be written \(.+\); .*--work-dir"):
        train(root, tmp_path / "file/run")


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint(root: Path, work_dir: Path) -> None:
    changes = {"schedule.total_iters": 8, "schedule.val_interval": 8}
    run = start("train", arguments(root, work_dir, **changes), work_dir.parent)
    wait_until((work_dir / "iter_2.pth").exists, run)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # writes fail as on a full disk
    assert run.wait() == 1
    assert re.search(r"error: cannot write \S+\.pth: .*Check that the disk has free space", run.text())
    assert "Traceback" not in run.text()
    assert not list(work_dir.glob("**/*.tmp"))
    last = max(work_dir.glob("iter_*.pth"), key=lambda path: path.stat().st_mtime)
    assert read_checkpoint(last)["meta"]["iter"] < 8
    assert train(root, work_dir, "--resume", **changes) == 0
    assert sorted(losses(work_dir)) == list(range(1, 9))


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        variables = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(LaunchError, match=rf"cannot listen on or reach 127.0.0.1:{port} .*another port"):
            launch.start("cpu")


# -- how errors are told

EXPLAINED = (
    ConfigError,
    DataError,
    CheckpointError,
    LaunchError,
    NonFiniteLossError,
    ExtensionError,
    BackendError,
)


@pytest.mark.parametrize("error", EXPLAINED, ids=lambda error: error.__name__)
def test_user_errors_are_printed_without_traceback(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error("a.png: broken. Restore it")

    assert run_command(fail) == 1
    assert capsys.readouterr() == ("", "error: a.png: broken. Restore it\n")


def test_ctrl_c_before_training_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run_command(interrupt) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_scripts_end_with_1_and_the_message(root: Path, tmp_path: Path, name: str) -> None:
    (root / VAL).unlink()
    args = arguments(root, tmp_path / "run") if name == "train" else evaluation(root, tmp_path)
    run = start(name, args, tmp_path)
    assert run.wait() == 1
    assert re.search(r"^error: split file \S+/splits/val.txt not found", run.text(), re.M)
    assert "Traceback" not in run.text()


def evaluation(root: Path, tmp_path: Path) -> list[str]:
    write_weights(tmp_path / "weights.pth", "vit_t")
    return [str(tmp_path / "weights.pth"), "--backbone", "vit_t", "--device", "cpu", *options(root)]
