"""Errors of `Object_Detection/tools/predict.py`."""

from pathlib import Path

import pytest
import torch
import yaml

from s5.command import run_command
from s5.detection.trained import load_det_config
from s5.errors import CheckpointError, ConfigError, DataError
from s5.training.config import save_config
from tests.detection.predict.det_models import TASKS, files, predict, write_detector
from tests.helpers.det_runs import script, write_config, write_datasets
from tests.helpers.trained_models import table, write_checkpoint


def test_unreadable_images_are_named_and_the_others_done(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("no image")
    (images / "empty.tif").write_bytes(b"II*\0")
    out = tmp_path / "out"
    assert predict(checkpoint, images, out, "--tasks", "roads", "--formats", "dota") == 1
    said = capsys.readouterr().err
    for name in ("cut.png: truncated PNG", "text.jpg: is not an image", "empty.tif: damaged or unsupported"):
        assert f"{images}/{name}" in said
    assert "3 images could not be read; all others are finished" in said
    assert files(out / "roads/dota") == ["a.txt", "deep/b.c.txt", "deep/d.txt"]


def test_unknown_task_lists_the_known(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'lakes'; this model's tasks: harbour, roads"):
        predict(checkpoint, images, tmp_path / "out", "--tasks", "roads,lakes")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [("nothing", "no such file or folder"), ("*.tif", "no images found"), ("empty", "no images found")],
)
def test_no_images_is_an_error(
    checkpoint: Path, images: Path, tmp_path: Path, given: str, message: str
) -> None:
    (images / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        predict(checkpoint, [images / "a.png", images / given], tmp_path / "out")


def test_results_in_the_folder_of_the_images_are_an_error_that_says_so(
    checkpoint: Path, images: Path
) -> None:
    with pytest.raises(DataError, match=r"images is also the folder of the results \(--out\)"):
        predict(checkpoint, images, images / "deep/..")
    assert not (images / "harbour").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "16"), "window 16: must be at least 32 pixels"),
        (("--window", "0"), "window 0: must be at least 32 pixels"),
        (("--overlap", "64"), "overlap 64: must be from 0 to less than the window of 64"),
        (("--overlap", "-1"), "overlap -1: must be from 0"),
        (("--config", "x.py"), "--config: .* is self-describing"),
    ],
)
def test_settings_that_make_no_sense_are_an_error(
    checkpoint: Path, images: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        predict(checkpoint, images, tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--formats", "dota,shp"), "--formats/--kinds: shp: must be one of drawings, dota, geojson"),
        (("--formats", ","), "--formats/--kinds: ',' contains no name"),
        (("--task", ","), "--tasks/--task: ',' contains no name"),
        (("--score-thr", "2"), "--score-thr 2.0: must be from 0 to 1"),
    ],
)
def test_options_that_do_not_exist(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit):
        predict(checkpoint, images, tmp_path / "out", *options)
    assert message in capsys.readouterr().err


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


def test_checkpoints_that_are_no_detector(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_checkpoint(tmp_path / "seg.pth", {"a": table("a", ["x", "y"])}, "vit_t")
    with pytest.raises(CheckpointError, match=r"seg.pth holds segmentation heads \(a\)"):
        predict(tmp_path / "seg.pth", images, tmp_path / "out")
    assert run_command(lambda: predict(tmp_path / "none.pth", images, tmp_path / "out")) == 1
    assert f"error: no checkpoint {tmp_path}/none.pth" in capsys.readouterr().err
    write_detector(tmp_path / "half.pth", {"lake": ("raft",)}, "vit_t")
    content = torch.load(tmp_path / "half.pth")
    state = {name: value for name, value in content["state_dict"].items() if ".rpn_head." not in name}
    torch.save({**content, "state_dict": state}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"half.pth has no matching .*heads.lake.rpn_head"):
        predict(tmp_path / "half.pth", images, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"out: cannot be written .*continue with --resume"):
        predict(checkpoint, images, tmp_path / "out")


def test_help_names_the_formats(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script("predict").main(["--help"])
    assert "longitude and latitude" in capsys.readouterr().out
