"""`python -m s5.export`: options and messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import s5.export.run
from s5.errors import ConfigError
from s5.export.__main__ import main
from s5.export.plan import ExportOptions, Plan, make_plan
from s5.export.run import record, write_files
from tests.export.conftest import TOLERANCE, require_onnx
from tests.export.deepness import Deepness


def said(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run the command, which fails; returns its message."""
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


class TestMistakes:
    """Bad input: a message that says what to do, and nothing is written."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), r"several tasks: choose one with --task (roads, land, or all for one output each)"),
            (("--task", "lakes"), "unknown task 'lakes'; this model's tasks: roads, land"),
            (("--task", "land", "--size", "0"), "size 0: must be at least 1 pixel"),
            (("--task", "land", "--resolution", "0"), "resolution 0.0: must be more than 0 cm per pixel"),
            (("--backbone", "vit_b"), "is self-describing"),
            (("--classes", "roads"), "--classes roads: write TASK=DATASET or TASK=NUMBER"),
        ],
    )
    def test_options(
        self,
        segmentor: Path,
        tmp_path: Path,
        options: tuple[str, ...],
        message: str,
        capsys: pytest.CaptureFixture,
    ) -> None:
        assert message in said(capsys, segmentor, tmp_path / "out.pt2", *options)
        assert not list(tmp_path.iterdir())

    def test_a_detector_has_one_task(
        self, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        for options in ((), ("--task", "all")):
            assert "choose one with --task (harbour, roads)" in said(
                capsys, detector, tmp_path / "a.pt2", *options
            )

    def test_names_of_the_file(self, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "folder.pt2").mkdir()
        (tmp_path / "old.pt2").write_text("old")
        (tmp_path / "other.stac.json").write_text("old")
        for name, message in (
            ("out.engine", "choose a name that ends in .onnx (ONNX) or .pt2 (torch.export)"),
            ("folder.pt2", "is a folder: name the file to write"),
            ("old.pt2", "old.pt2 exists: add --overwrite"),
            ("other.pt2", "other.stac.json exists: add --overwrite"),
            ("old.pt2/out.pt2", "cannot be written"),
        ):
            assert message in said(capsys, segmentor, tmp_path / name, "--task", "land", "--size", "32")
        assert (tmp_path / "old.pt2").read_text() == "old"

    def test_without_the_optional_packages(
        self, no_onnx: None, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        message = said(capsys, segmentor, tmp_path / "out.onnx", "--task", "land")
        assert "ONNX files need onnx, onnxscript, onnxruntime: pip install -e '.[export]'" in message

    def test_no_model(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
        torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
        for name, message in (
            ("none.pth", "no checkpoint"),
            ("page.pth", "page.pth"),
            ("other.pth", "has no metadata: give the name of the backbone"),
        ):
            assert message in said(capsys, tmp_path / name, tmp_path / "out.pt2")


@pytest.mark.slow
def test_a_file_without_metadata(segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = torch.load(segmentor)["state_dict"]
    torch.save(state, tmp_path / "plain.pth")
    (tmp_path / "out.pt2").write_text("old")
    options = ("--backbone", "vit_t_moe", "--classes", "roads=2", "land=3", "--task", "land", "--size", "32")
    assert main([str(tmp_path / "plain.pth"), str(tmp_path / "out.pt2"), *options, "--overwrite"]) == 0
    assert "out.pt2" in capsys.readouterr().out
    images = torch.rand(2, 3, 32, 32)
    (found,) = torch.export.load(tmp_path / "out.pt2").module()(images)
    model = s5.load(segmentor, "cpu", "fp32").model
    with torch.no_grad():
        assert torch.allclose(found, model.probabilities(images, ["land"]), atol=TOLERANCE)


class Filter(nn.Module):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 7, padding=3).requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.layer(image).softmax(1),)


@pytest.fixture(scope="module")
def recorded(segmentor: Path) -> tuple[ExportedProgram, nn.Module, Plan]:
    """A recorded graph, to be written; a network of a single layer stands for that of the plan."""
    require_onnx()
    plan = make_plan(s5.load(segmentor, "cpu", "fp32"), ExportOptions(task="land", qgis=True))
    graph = Filter().eval()
    return record(graph, plan), graph, plan


@pytest.mark.slow
def test_a_runtime_that_computes_something_else_is_noticed(
    recorded: tuple[ExportedProgram, nn.Module, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Wrong:
        def __init__(self, *_: object, **__: object) -> None: ...
        def run(self, *_: object) -> list[np.ndarray]:
            return [np.full((2, 3, 32, 32), 1 / 3, np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(ConfigError, match="computes other results for land than PyTorch"):
        write_files(*recorded, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_too_large_for_one_file(
    recorded: tuple[ExportedProgram, nn.Module, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s5.export.run, "SINGLE_FILE", 1000)
    write_files(*recorded, tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data", "out.stac.json"]
    assert Deepness(tmp_path / "out.onnx").tile == 32
    assets = json.loads((tmp_path / "out.stac.json").read_text())["assets"]
    assert assets["weights"]["href"] == "./out.onnx.data"


def test_the_help_names_everything(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--task", "--size", "--qgis", "--resolution", "--overwrite"))
