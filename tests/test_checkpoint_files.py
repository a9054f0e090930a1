"""Checkpoint files: safe reading, atomic writing."""

import argparse
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from s5.engine.checkpoint import CheckpointError, read_checkpoint, save_atomic


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_written_content_is_read_back_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "runs" / "a.pth"
    save_atomic({"state_dict": {"w": torch.arange(3)}, "step": 7}, path)
    content = read_checkpoint(path)
    assert content["step"] == 7
    assert torch.equal(content["state_dict"]["w"], torch.arange(3))
    assert os.listdir(path.parent) == ["a.pth"]


def test_the_suffix_may_be_left_out(tmp_path):
    save_atomic({"step": 1}, tmp_path / "vit_b_s4p_upernet.pth")
    assert read_checkpoint(tmp_path / "vit_b_s4p_upernet") == {"step": 1}


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"no checkpoint mae.bin; looked for {tmp_path}/mae.bin and .*mae.bin.pth"
    ):
        read_checkpoint("mae.bin")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error_with_name_and_size(tmp_path, share, legacy):
    path = tmp_path / "cut.pth"
    torch.save({"w": torch.randn(1000)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"cut.pth \({len(content)} bytes\) is truncated or no checkpoint"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"<html>404</html>", os.urandom(5000), b"version https://git-lfs\n"])
def test_a_file_of_another_kind_is_an_error(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="page.pth .* is truncated or no checkpoint"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_never_raises_anything_else(tmp_path):
    torch.save(
        {"w": torch.randn(20), "n": [1, "a"]}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False
    )
    whole, damaged = (tmp_path / "whole.pth").read_bytes(), tmp_path / "damaged.pth"
    rng = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(whole[: rng.integers(1, len(whole))])
        for position in rng.integers(0, len(content), rng.integers(0, 4)):
            content[position] = rng.integers(0, 256)
        damaged.write_bytes(content)
        try:
            read_checkpoint(damaged)
        except CheckpointError as error:
            assert "damaged.pth" in str(error)


def test_an_unreadable_path_is_an_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    save_atomic({"step": 1}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match="cannot read .*a.pth: .*Permission denied"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_with_something_else_than_a_dict_is_an_error(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list.pth holds a list"):
        read_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, legacy):
    path, created = tmp_path / "evil.pth", tmp_path / "created"
    torch.save({"model": Payload(created)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"evil.pth holds more than weights \(.*open\).*allow_pickle=True"
    ):
        read_checkpoint(path)
    assert not created.exists()
    read_checkpoint(path, allow_pickle=True)
    assert created.exists()


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, created = tmp_path / "evil.pkl", tmp_path / "created"
    path.write_bytes(pickle.dumps({"model": Payload(created)}, protocol=2))
    with pytest.raises(CheckpointError, match="evil.pkl"):
        read_checkpoint(path)
    assert not created.exists()


class GetattrGadget:
    """Reaches for an attribute that a statistics buffer of mmengine does not need."""

    def __reduce__(self):
        return (getattr, (HistoryBuffer, "register_statistics"))


def test_getattr_serves_the_statistics_of_a_buffer_only(tmp_path):
    torch.save({"model": GetattrGadget()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="holds more than weights"):
        read_checkpoint(tmp_path / "evil.pth")


def test_what_a_runner_and_published_scripts_store_is_read_without_pickle(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "message_hub": {"log_scalars": {"train/loss": buffer}, "runtime_info": {"seed": np.int64(3)}},
        "best": np.float32(0.5),
        "areas": np.arange(4, dtype=np.uint8),
        "args": argparse.Namespace(lr=0.1, blr=None),
    }
    save_atomic(content, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read["message_hub"]["log_scalars"]["train/loss"].mean() == 1.5
    assert read["message_hub"]["runtime_info"]["seed"] == 3
    assert read["best"] == np.float32(0.5)
    assert read["areas"].tolist() == [0, 1, 2, 3]
    assert read["args"].lr == 0.1


def test_reading_leaves_no_type_allowed_behind(tmp_path):
    save_atomic({"step": 1}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"w": torch.arange(3)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["w"], torch.arange(3))
    (tmp_path / "b.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="b.safetensors is damaged"):
        read_checkpoint(tmp_path / "b.safetensors")


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.pth"
    save_atomic({"step": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writing beyond fails as on a full disk
    try:
        with pytest.raises(CheckpointError, match="cannot write .*a.pth.*disk has room.*is unchanged"):
            save_atomic({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert read_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write .*file/a.pth.*nothing was written"):
        save_atomic({"step": 1}, tmp_path / "file" / "a.pth")


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_atomic({"step": 1}, path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_atomic({"step": 2}, path)
    monkeypatch.undo()
    assert read_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_temporary_file_left_by_a_killed_process_is_no_obstacle(tmp_path):
    (tmp_path / ".a.pth.tmp").write_bytes(b"half")
    save_atomic({"step": 1}, tmp_path / "a.pth")
    assert os.listdir(tmp_path) == ["a.pth"]
