"""Errors of `Object_Detection/tools/predict.py`."""

from pathlib import Path

import pytest
import torch
import yaml

from s5.detection.trained import load_det_config
from s5.errors import CheckpointError, ConfigError
from s5.training.config import save_config
from tests.detection.predict.det_models import TASKS, predict, write_detector
from tests.helpers.det_runs import script, write_config, write_datasets
from tests.helpers.predict_contract import PredictContract
from tests.helpers.trained_models import table, write_checkpoint


class TestContract(PredictContract):
    tasks = ("harbour", "roads")
    format = "dota"
    results = ["a.txt", "deep/b.c.txt", "deep/d.txt"]
    bad_settings = [
        (("--window", "16"), "window 16: must be at least 32 pixels"),
        (("--window", "0"), "window 0: must be at least 32 pixels"),
        (("--overlap", "64"), "overlap 64: must be from 0 to less than the window of 64"),
        (("--overlap", "-1"), "overlap -1: must be from 0"),
    ]

    def predict(self, checkpoint: Path, given: object, out: Path, *options: object) -> int:
        return predict(checkpoint, given, out, *options)


def test_a_threshold_must_be_a_share(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        predict(checkpoint, images, tmp_path / "out", "--score-thr", "2")
    assert "--score-thr 2.0: must be from 0 to 1" in capsys.readouterr().err


def test_a_resumable_checkpoint_needs_its_configuration(
    checkpoint: Path, model: torch.nn.Module, images: Path, tmp_path: Path
) -> None:
    given = (resumable(checkpoint, tmp_path), images / "a.png", tmp_path / "out", "--formats", "dota")
    with pytest.raises(ConfigError, match=r"iter_7 has no metadata about its network: .*\(--config\)"):
        predict(*given)
    run_config(tmp_path)
    assert predict(*given) == 0, "a run leaves it beside"
    assert predict(checkpoint, images / "a.png", tmp_path / "alone", "--formats", "dota") == 0
    for task in TASKS:
        ours, theirs = (tmp_path / f"{out}/{task}/dota/a.txt" for out in ("out", "alone"))
        assert ours.read_text() == theirs.read_text()
    with pytest.raises(ConfigError, match="iter_7 has the tasks harbour, roads, but not a, b"):
        predict(*given, "--config", tmp_path / "data/config.py")


def test_resume_knows_what_the_configuration_said(
    checkpoint: Path, model: torch.nn.Module, images: Path, tmp_path: Path
) -> None:
    given = (resumable(checkpoint, tmp_path), images / "a.png", tmp_path / "out", "--formats", "dota")
    options = ("--config", run_config(tmp_path), "--resume", "--cfg-options")
    for _ in range(2):
        assert predict(*given, *options, "model.max_per_img=4") == 0
    with pytest.raises(ConfigError, match="max_per_img 4, now it is 3"):
        predict(*given, *options, "model.max_per_img=3")
    with pytest.raises(ConfigError, match=r"enlarge \[1.4, 1.2\], now it is \[3.0, 3.0\]"):
        predict(*given, *options, "model.max_per_img=4", "model.enlarge=[3,3]")


def resumable(checkpoint: Path, folder: Path) -> Path:
    """Write the detector as a resumable checkpoint holds it; returns the path without its extension."""
    content = torch.load(checkpoint)
    tasks = {"dataset_meta": {"tasks": content["meta"]["tasks"]}}
    state = {f"detector.{name}": value for name, value in content["state_dict"].items()}
    torch.save({"state_dict": state, "meta": tasks}, folder / "iter_7.pth")
    return folder / "iter_7"


def run_config(folder: Path) -> Path:
    """Write the configuration of the detector as a run leaves it in its folder."""
    one = {"images": "-", "annotations": "-"}
    sections = {task: {"classes": list(names), "train": one, "val": one} for task, names in TASKS.items()}
    options = [f"tasks={yaml.safe_dump(sections, default_flow_style=True, width=999)}"]
    cfg = load_det_config(write_config(write_datasets(folder / "data")), options)
    save_config(cfg, folder / "config.yaml")
    return folder / "config.yaml"


def test_checkpoints_that_are_no_detector(images: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "seg.pth", {"a": table("a", ["x", "y"])}, "vit_t")
    with pytest.raises(CheckpointError, match=r"seg.pth holds segmentation heads \(a\)"):
        predict(tmp_path / "seg.pth", images, tmp_path / "out")
    write_detector(tmp_path / "half.pth", {"lake": ("raft",)}, "vit_t")
    content = torch.load(tmp_path / "half.pth")
    state = {name: value for name, value in content["state_dict"].items() if ".rpn_head." not in name}
    torch.save({**content, "state_dict": state}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"half.pth has no matching .*heads.lake.rpn_head"):
        predict(tmp_path / "half.pth", images, tmp_path / "out")


def test_help_names_the_formats(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script("predict").main(["--help"])
    assert "longitude and latitude" in capsys.readouterr().out
