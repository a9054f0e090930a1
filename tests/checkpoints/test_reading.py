"""Checkpoint files: safe reading, atomic writing."""

import argparse
import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from s5.checkpoints.inert_pickle import Placeholder
from s5.checkpoints.reading import as_safetensors, read_checkpoint, save_atomic
from s5.errors import CheckpointError
from tests.helpers.processes import largest_file


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


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("more", [{}, {"args": Payload("never")}], ids=["plain", "with an object"])
def test_lazily_read_content_is_the_same(tmp_path, monkeypatch, new, more):
    """A zip archive is mapped instead of read."""
    content, mapped, load = {"w": torch.arange(3), "step": 7}, [], torch.load
    torch.save({**content, **more}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    monkeypatch.setattr(torch, "load", lambda *a, mmap, **k: mapped.append(mmap) or load(*a, mmap=mmap, **k))
    found = read_checkpoint(tmp_path / "a.pth", lazy=True)
    assert found["step"] == 7 and torch.equal(found["w"], content["w"])
    assert set(mapped) == {new}
    read_checkpoint(tmp_path / "a.pth")
    assert not mapped[-1], "all of it at once is read, so that the file may change"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"no checkpoint mae.bin; tried {tmp_path}/mae.bin and .*mae.bin.pth"
    ):
        read_checkpoint("mae.bin")


def write_zip(path, content):
    torch.save(content, path)


def write_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_legacy_with_objects(path, content):
    write_legacy(path, content | {"args": Payload("nowhere")})


def write_safetensors(path, content):
    save_file(content, path)


WRITERS = [write_zip, write_legacy, write_legacy_with_objects, write_safetensors]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.35, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_truncated_file_is_an_error_with_name_and_size(tmp_path, share, write):
    path = tmp_path / ("cut.safetensors" if write is write_safetensors else "cut.pth")
    write(path, {"w": torch.randn(1000), "v": torch.randn(30)})
    content = path.read_bytes()[: int(share * path.stat().st_size) - 1]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cut.\w+ \({len(content)} bytes\) is truncated: its end is"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_cut_anywhere_in_its_pickles_is_truncated(tmp_path):
    path = tmp_path / "cut.pth"
    write_legacy_with_objects(path, {"w": torch.zeros(2), "name": "vit", "epochs": [1, 2.5, None]})
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is truncated: its end is"):
            read_checkpoint(path)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "a.pth").touch()
    with pytest.raises(CheckpointError, match=r"a\.pth is empty \(0 bytes\)"):
        read_checkpoint(tmp_path / "a.pth")


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 100)
    return file.getvalue()


def tarred(*names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n<html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"Not found", "a text file that starts with 'Not found'"),
        (b'{"error": "gated"}', "a text file"),
        (
            b'{\n  "metadata": {"total_size": 5},\n  "weight_map": {}}',
            "the index of weights in several files",
        ),
        (bytes(range(200, 256)) * 20, "unknown kind that starts with c8 c9"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (gzip.compress(b"weights" * 50, mtime=0), "gzip archive: unpack"),
        (zipped("vit/README.md", "vit/vit_b.pth"), "zip archive of vit/README.md, vit/vit_b.pth: .*unpack"),
        (zipped("archive/data.pkl", "archive/constants.pkl"), "TorchScript"),
        (tarred("vit_b.pth"), "tar archive of vit_b.pth: .*unpack"),
        (pickle.dumps({"w": [1.0]}), "a pickle that was not written by torch.save"),
        (pickle.dumps(7, protocol=0), "a text file"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_another_kind_is_named(tmp_path, content, kind, suffix):
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    kind = kind if suffix == "pth" else "not a safetensors file but"
    with pytest.raises(CheckpointError, match=rf"page\.{suffix} .*{kind}") as error:
        read_checkpoint(path)
    assert "truncated" not in str(error.value)


def test_a_folder_is_named_with_the_weights_in_it(tmp_path):
    folder = tmp_path / "vit-mae-base"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    with pytest.raises(CheckpointError, match="vit-mae-base is a folder: .*such as model.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("latest", "zero_to_fp32.py", "global_step9/mp_rank_00_model_states.pt"),
            "DeepSpeed.*zero_to_fp32.py",
        ),
        (("mp_rank_00_model_states.pt",), "DeepSpeed; give its mp_rank_00_model_states.pt"),
        ((".metadata", "__0_0.distcp"), "distributed checkpoint of PyTorch; run .*dcp_to_torch"),
        (("model.safetensors.index.json", "model-00001-of-00002.safetensors"), "weights in several files"),
    ],
)
def test_a_checkpoint_that_is_a_folder_says_how_to_get_one_file(tmp_path, files, message):
    for name in files:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    with pytest.raises(CheckpointError, match=f"run is a folder: .*{message}"):
        read_checkpoint(tmp_path / "run")


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
    with pytest.raises(CheckpointError, match="list.pth contains a list"):
        read_checkpoint(tmp_path / "list.pth")


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, created = tmp_path / "evil.pkl", tmp_path / "created"
    path.write_bytes(pickle.dumps({"model": Payload(created)}, protocol=2))
    with pytest.raises(CheckpointError, match="evil.pkl"):
        read_checkpoint(path)
    assert not created.exists()


class GetattrGadget:
    """Accesses an attribute that a statistics buffer of mmengine does not need."""

    def __reduce__(self):
        return (getattr, (HistoryBuffer, "register_statistics"))


def test_getattr_serves_the_statistics_of_a_buffer_only(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "hub": GetattrGadget()}, tmp_path / "evil.pth")
    assert isinstance(read_checkpoint(tmp_path / "evil.pth")["hub"], Placeholder)


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


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    write_safetensors(tmp_path / name, {"w": torch.arange(3)})
    assert torch.equal(read_checkpoint(tmp_path / name)["w"], torch.arange(3))


def test_safetensors_restore_metadata(tmp_path):
    state = {"w": torch.arange(6.0).view(2, 3).T, "v": torch.ones(2).bfloat16()}
    meta = {"backbone": "vit_b", "img_size": 64, "tasks": {"roads": ["a", "b"]}, "roads/mIoU": 51.5}
    (tmp_path / "a.safetensors").write_bytes(as_safetensors(state | {"view": state["w"][1:]}, meta))
    content = read_checkpoint(tmp_path / "a.safetensors")
    assert content["meta"] == meta
    assert torch.equal(content["state_dict"]["w"], state["w"])
    assert torch.equal(content["state_dict"]["view"], state["w"][1:])
    assert content["state_dict"]["v"].dtype == torch.bfloat16


def test_a_damaged_header_of_safetensors_is_an_error(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.arange(3)})
    content = (tmp_path / "a.safetensors").read_bytes().replace(b"data_offsets", b"data_0ffsets")
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="a.safetensors .* is damaged: its header"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("place", "length"),
    [(b"PK\x01\x02", 40), (b"Xcounter", 0)],  # in the list of contents; an operation with a length
)
def test_a_damaged_archive_is_not_called_truncated(tmp_path, place, length):
    write_zip(tmp_path / "a.pth", {"w": torch.randn(100), "Xcounter": 1})
    content = bytearray((tmp_path / "a.pth").read_bytes())
    start = content.index(place)
    if length:
        content[start : start + length] = bytes(length)
    else:
        content[start - 4 : start] = b"\xff\xff\xff\x7f"
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth .* is damaged: ") as error:
        read_checkpoint(tmp_path / "a.pth")
    assert "truncated" not in str(error.value)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.pth"
    save_atomic({"step": 1}, path)
    refused = pytest.raises(CheckpointError, match="cannot write .*a.pth.*disk has free space.*is unchanged")
    with largest_file(100_000), refused:
        save_atomic({"w": torch.zeros(100_000)}, path)
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
