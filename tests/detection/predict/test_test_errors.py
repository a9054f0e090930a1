"""Errors of `Object_Detection/tools/test.py`."""

import json
import shutil
from pathlib import Path

import torch

from s5.checkpoints.reading import read_checkpoint
from s5.errors import CheckpointError, ConfigError, DataError, ImageError
from s5.launch import LaunchError
from tests.detection.predict.det_models import evaluate, fails, files, write_detector
from tests.helpers.trained_models import table, write_checkpoint


def test_unknown_task_lists_the_known(config: Path, start: Path, tmp_path: Path) -> None:
    message = "unknown task 'c'; the configuration's tasks: a, b"
    fails(ConfigError, message, config, start, tmp_path, "--tasks", "a,c")


def test_a_mistyped_checkpoint_leaves_no_folder(config: Path, tmp_path: Path) -> None:
    fails(CheckpointError, "no checkpoint .*typo.pth", config, tmp_path / "typo.pth", tmp_path)
    assert not (tmp_path / "work").exists()


def test_checkpoint_of_another_network(config: Path, start: Path, tmp_path: Path) -> None:
    """Named for weights, and for resumable checkpoints, which do not say what they are."""
    options = ("--cfg-options", "backbone=vit_s")
    message = r"start.*/.*\.pth holds a vit_t_moe, .*config.py has the backbone vit_s"
    fails(ConfigError, message, config, start, tmp_path, *options)
    fails(
        ConfigError,
        "vit_t_moe, .*vit_t; give .* or set backbone=vit_t_moe",
        config,
        start,
        tmp_path,
        "--cfg-options",
        "backbone=vit_t",
    )
    fails(
        CheckpointError,
        "experts of 48.*of 32",
        config,
        start,
        tmp_path,
        "--cfg-options",
        "model.expert_channels=32",
    )
    message = r"trained with model.enlarge \(1.4, 1.2\), .*config.py has \(1.0, 1.0\)"
    fails(ConfigError, message, config, start, tmp_path, "--cfg-options", "model.enlarge=[1,1]")


def test_checkpoint_with_another_fpn(config: Path, start: Path, tmp_path: Path) -> None:
    message = r"task a: .*\.pth was trained with model.fpn_norm False, .*config.py has True"
    fails(ConfigError, message, config, start, tmp_path, "--cfg-options", "model.fpn_norm=True")


def test_checkpoint_of_other_tasks_or_classes(config: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "one.pth", {"b": ("box",), "c": ("box",)})
    message = r"one.pth has the tasks b, c, but not a, which .*config.py has; choose from them with --tasks"
    fails(ConfigError, message, config, tmp_path / "one.pth", tmp_path)
    assert evaluate(config, tmp_path / "one.pth", tmp_path, "--tasks", "b") == 0
    for given, said in (
        ("[crate]", "the classes box, .*has crate"),
        ("[box,crate]", "the classes box, .*has box, crate"),
    ):
        options = ("--tasks", "b", "--cfg-options", f"tasks.b.classes={given}")
        fails(
            ConfigError,
            f"task b: .*one.pth was trained for {said}",
            config,
            tmp_path / "one.pth",
            tmp_path,
            *options,
        )


def test_checkpoint_that_is_no_detector(config: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "seg.pth", {"a": table("a", ["x", "y"])}, "vit_t")
    fails(
        CheckpointError,
        r"seg.pth holds segmentation heads \(a\)",
        config,
        tmp_path / "seg.pth",
        tmp_path,
    )
    torch.save({"weight": torch.zeros(2)}, tmp_path / "none.pth")
    fails(CheckpointError, "none.pth: unrecognised checkpoint", config, tmp_path / "none.pth", tmp_path)
    fails(CheckpointError, "no checkpoint .*nowhere", config, tmp_path / "nowhere", tmp_path)


def test_resumable_checkpoint_of_another_task_set(trained: Path, tmp_path: Path) -> None:
    """Its metadata contain the classes."""
    options = ("--cfg-options", "tasks.b.classes=[crate]")
    message = "task b: .*iter_2.pth was trained for the classes box, .*has crate"
    fails(ConfigError, message, trained / "config.yaml", trained / "iter_2.pth", tmp_path, *options)


def test_resumable_checkpoint_of_other_enlarged_boxes(trained: Path, tmp_path: Path) -> None:
    """An older checkpoint has no settings, and is accepted."""
    config, options = trained / "config.yaml", ("--tasks", "a", "--cfg-options", "model.enlarge=[1,1]")
    message = r"iter_2.pth was trained with model.enlarge \(1.4, 1.2\), .*config.yaml has \(1.0, 1.0\)"
    fails(ConfigError, message, config, trained / "iter_2.pth", tmp_path, *options)
    content = read_checkpoint(trained / "iter_2.pth")
    del content["meta"]["dataset_meta"]["settings"]
    torch.save(content, tmp_path / "iter_2.pth")
    assert evaluate(config, tmp_path / "iter_2.pth", tmp_path / "work", *options) == 0


def test_places_that_cannot_be_written_are_said_before_the_work(
    config: Path, start: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for options, message in (
        (("--out", file), r"file/b: .*cannot be written .*choose another --out"),
        (("--submit", f"b={file}/b.zip"), r"file: .*cannot be written .*choose another --submit"),
    ):
        fails(LaunchError, message, config, start, tmp_path, "--tasks", "b", *options)
    (tmp_path / "b.zip").mkdir()
    options = ("--tasks", "b", "--submit", f"b={tmp_path}/b.zip")
    fails(ConfigError, "b.zip is a folder", config, start, tmp_path, *options)
    assert not list(tmp_path.glob("work/pictures/*"))


def test_scores_are_there_when_other_files_cannot_be_written(
    config: Path, start: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts/b/big.txt").mkdir(parents=True)
    message = r"texts/b/.*big.txt.*: cannot be written \(Is a directory\). Free disk space"
    fails(LaunchError, message, config, start, tmp_path, "--tasks", "b", "--out", tmp_path / "texts")
    assert list(json.loads((tmp_path / "work/scores.json").read_text())) == ["b"]


def test_files_of_an_evaluation_before_are_removed(config: Path, start: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert evaluate(config, start, work) == 0
    (work / "pictures/val_b_000012.jpg").write_bytes(b"of a training")
    assert (work / "b_classes.csv").exists() and (work / "pictures/val_b_000000.jpg").exists()
    assert evaluate(config, start, work, "--tasks", "a") == 0
    assert {path for path in files(work) if path.startswith(("scores", "b", "a", "pictures"))} == {
        "a_classes.csv",
        "pictures/val_a_000000.jpg",
        "pictures/val_b_000012.jpg",
        "scores.json",
    }


def test_images_that_are_missing_or_broken(config: Path, start: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(config.parent, root)
    options = ("--tasks", "a", "--cfg-options", f"data_root={root}")
    whole = (root / "a/images/2.png").read_bytes()
    (root / "a/images/2.png").write_bytes(whole[: len(whole) // 2])
    fails(ImageError, r"a/images/2.png: truncated PNG", config, start, tmp_path, *options)
    for path in (root / "a/images").iterdir():
        path.unlink()
    fails(DataError, r"a/images: no images", config, start, tmp_path, *options)
