"""Weights are read despite other objects in the file, which are neither imported nor executed."""

import argparse
import collections
import datetime
import enum
import functools
import io
import logging
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from s5.checkpoints import inert_pickle
from s5.checkpoints.reading import read_checkpoint
from s5.errors import CheckpointError

FORMATS = [(legacy, protocol) for legacy in (False, True) for protocol in (2, 3, 4, 5)]


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Numbers(list):
    pass


class Settings(dict):
    pass


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = torch.zeros(2)


class Kind(enum.Enum):
    A = 1


def foreign():
    """Objects as training scripts store them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    return {
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("/data"), win=Call(pathlib.WindowsPath, "D:\\out")
        ),
        "cfg": ConfigDict(model=dict(type="ViT", sizes=[1, 2])),
        "hub": {"loss": HistoryBuffer([1.0], [1])},
        "optimizer": optimizer,
        "epoch": np.int64(3),
        "areas": np.arange(4),
        "ragged": np.array([{}, "a"], dtype=object),
        "numbers": Numbers([1, 2]),
        "settings": Settings(a=1),
        "slots": Slots(),
        "kinds": {Kind.A: 1, (Kind.A, 2): Kind},
        "when": datetime.datetime(2020, 1, 1),
        "join": os.path.join,
        "part": functools.partial(print, "called"),
        "device": torch.device("cpu"),
        "sparse": torch.eye(2).to_sparse(),
        "loss": torch.nn.MSELoss(),
        "queue": collections.deque([1]),
    }


def weights():
    parameter, tensor = torch.nn.Parameter(torch.randn(3)), torch.randn(4)
    parameter.layer, tensor.note = "fc", "a tensor with attributes"
    return {
        "parameter": parameter,
        "noted": tensor,
        "half": torch.randn(5).half(),
        "float8": torch.randn(5).to(torch.float8_e4m3fn),
        "view": torch.randn(4, 6)[1:, ::2],
        "empty": torch.empty(0, 3),
        "counter": torch.tensor(7),
    }


def assert_read(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name].float(), tensor.detach().float()), name


@pytest.mark.parametrize(("legacy", "protocol"), FORMATS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_tensors_are_read_beside_any_object(tmp_path, legacy, protocol, caplog):
    expected, path = weights(), tmp_path / "a.pth"
    content = {
        "model": expected,
        "containers": collections.defaultdict(list, a={1, 2}),
        "raw": b"\xff",
    } | foreign()
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with caplog.at_level(logging.INFO):
        read = read_checkpoint(path)
    assert_read(read["model"], expected)
    assert read["containers"] == {"a": {1, 2}}
    assert read["raw"] == b"\xff"
    assert set(read) == set(content)
    assert "a.pth: skipped objects other than weights" in caplog.text
    assert isinstance(read["args"], inert_pickle.Placeholder) and read["args"].origin == "argparse.Namespace"


@pytest.mark.parametrize(("legacy", "protocol"), FORMATS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["beside", "key", "in a list", "as a hook"])
def test_nothing_is_run(tmp_path, legacy, protocol, place):
    created = tmp_path / "created"
    attacks = (
        Call(os.system, f"touch {created}"),
        Call(eval, f"open({str(created)!r}, 'w')"),
        Call(open, str(created), "w"),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(map, os.mkdir, [str(created)]),
    )
    expected = {"w": torch.arange(3.0)}
    content: dict = {"model": expected}
    if place == "beside":
        content["extra"] = attacks
    elif place == "key":
        content["extra"] = dict.fromkeys(attacks, 1)
    elif place == "in a list":
        content["extra"] = [Numbers(attacks), {"deep": [attacks]}]
    else:
        rebuild = expected["w"].__reduce_ex__(2)
        hooks = collections.OrderedDict({0: attacks})
        content["model"] = {"w": Call(rebuild[0], *rebuild[1][:5], hooks)}
    path = tmp_path / "evil.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert not created.exists()
    assert_read(read["model"], expected)
    assert not read["model"]["w"]._backward_hooks


def test_nothing_is_imported(tmp_path, monkeypatch):
    module = types.ModuleType("a_project_that_is_not_here")
    module.Config = type("Config", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"model": {"w": torch.ones(1)}, "cfg": module.Config()}, tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, module.__name__)
    (tmp_path / f"{module.__name__}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    read = read_checkpoint(tmp_path / "a.pth")
    assert read["cfg"].origin == "a_project_that_is_not_here.Config"
    assert module.__name__ not in sys.modules


@pytest.mark.parametrize(
    "name", ["_codecs\nencode", "torch._utils\n_rebuild_tensor_v2", "torch\nSize", "no\nclass"]
)
def test_a_file_cannot_change_what_reads_it(name):
    """The instruction that restores an object's attributes, on a function or class itself."""
    state = b"(N}X\x04\x00\x00\x00evilK\x01stb."  # (None, {"evil": 1}): an attribute set with setattr
    reader = inert_pickle.pickle_module(set())
    try:
        found = reader.load(io.BytesIO(b"\x80\x02c" + name.encode() + b"\n" + state))
    except (TypeError, AttributeError):
        return
    assert not hasattr(found, "evil")
    assert not hasattr(reader.load(io.BytesIO(b"\x80\x02c" + name.encode() + b"\n.")), "evil")


def test_byte_strings_of_python_2_are_read():
    reader = inert_pickle.pickle_module(set())
    assert reader.load(io.BytesIO(b"\x80\x02}U\x03keyU\x02\xe9!s.")) == {"key": "é!"}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_model_pickled_as_a_whole_is_named(tmp_path, legacy, wrap, recwarn):
    torch.save(wrap(torch.nn.Linear(2, 2)), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"a\.pth contains no weights .*torch\.nn\.\S*Linear.*state_dict\(\)"
    ):
        read_checkpoint(tmp_path / "a.pth")
    assert not [warning for warning in recwarn if "source code" in str(warning.message)]


def test_a_checkpoint_to_resume_from_may_not_lack_anything(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}, "message_hub": Slots()}, tmp_path / "iter_2.pth")
    with pytest.raises(CheckpointError, match=r"iter_2\.pth contains objects that are not read \(.*Slots\)"):
        read_checkpoint(tmp_path / "iter_2.pth", whole=True)


def test_torchs_own_setting_that_forbids_it_is_named(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(1), "args": Slots()}, tmp_path / "a.pth")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids: unset it"):
        read_checkpoint(tmp_path / "a.pth")


def test_reading_leaves_the_ordinary_pickle_alone(tmp_path):
    torch.save({"w": torch.ones(1), "args": Slots()}, tmp_path / "a.pth")
    read_checkpoint(tmp_path / "a.pth")
    assert pickle.loads(pickle.dumps(pathlib.PurePath("a"))) == pathlib.PurePath("a")
