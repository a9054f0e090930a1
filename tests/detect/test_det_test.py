"""`Object_Detection/tools/test.py`: scores are those of training, in one process and in several."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from det_models import evaluate, files, picture, rows, write_detector
from det_runs import script, write_config, write_datasets
from processes import start_ranks
from s4p_runs import REPO
from trained_models import table, write_checkpoint

from s5.data.errors import DataError, ImageError
from s5.data.image_io import write_image
from s5.engine.checkpoint import CheckpointError, read_checkpoint
from s5.engine.config import ConfigError
from s5.engine.launch import LaunchError

TASKS = {"a": ("box",), "b": ("box",)}
MEANS = ("mAP50", "mAP75", "mAP50:95", "mAP50_area", "mAP75_area", "mAP50:95_area")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that runs start from."""
    path = tmp_path_factory.mktemp("start") / "vit_t_moe_det.pth"
    write_detector(path, TASKS)
    return path


@pytest.fixture(scope="module")
def config(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in which the network finds some objects: part of what it finds is true, part of it is not."""
    config = write_config(write_datasets(tmp_path_factory.mktemp("data")))
    found = tmp_path_factory.mktemp("found")
    assert evaluate(config, start, found / "work", "--out", found) == 0
    for text, labels in (("a", "a/labelTxt"), ("b", "b/whole")):
        for path in sorted((found / text).glob("*.txt")):
            lines = path.read_text().splitlines()[1::2]
            objects = [" ".join(line.split()[:10]) for line in lines]
            (config.parent / labels / path.name).write_text("\n".join(objects) + "\n")
    return config


@pytest.fixture(scope="module")
def trained(config: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose weights are nearly those it started from."""
    work_dir = tmp_path_factory.mktemp("runs") / "run"
    changes = ["optim.lr=1e-9", "schedule.epochs=2", "schedule.milestones=[1]", "schedule.val_interval=2"]
    args = [str(config), "--device", "cpu", "--work-dir", str(work_dir), "--load-from", str(start)]
    assert script().main([*args, "--cfg-options", *changes]) == 0
    return work_dir


@pytest.fixture(scope="module")
def evaluated(config: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    options = ("--out", folder / "texts", "--submit", f"b={folder / 'b.zip'}")
    assert evaluate(config, trained / "vit_t_moe_det", folder / "work", *options) == 0
    return folder


def test_scores_are_those_of_the_last_validation(trained: Path, evaluated: Path) -> None:
    expected = json.loads((trained / "final_metrics.json").read_text())
    report = json.loads((evaluated / "work/scores.json").read_text())
    assert list(report) == ["a", "b"]
    for task, found in report.items():
        assert {name: found[name] for name in MEANS} == {name: expected[f"{task}/{name}"] for name in MEANS}
        assert found["classes"]["box"]["AP50"] == expected[f"{task}/AP50.box"]
        assert 0 < found["mAP50"] < 100, "no score that anything else would have, too"
    assert report["b"]["windows.mAP50"] == expected["b/windows.mAP50"] != report["b"]["mAP50"]
    assert "windows.mAP50" not in report["a"]
    assert (report["a"]["split"], Path(report["a"]["checkpoint"]).name) == ("val", "vit_t_moe_det")


@pytest.mark.parametrize("name", ["iter_2.pth", "vit_t_moe_det_best_b.pth"])
def test_other_checkpoints_of_the_run_and_some_of_the_tasks(
    trained: Path, evaluated: Path, tmp_path: Path, name: str
) -> None:
    """Also with the configuration as the run has left it."""
    assert evaluate(trained / "config.yaml", trained / name, tmp_path, "--tasks", "b,") == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    whole = json.loads((evaluated / "work/scores.json").read_text())
    assert list(report) == ["b"]
    assert {name: report["b"][name] for name in MEANS} == {name: whole["b"][name] for name in MEANS}


def test_tables_and_pictures(evaluated: Path) -> None:
    report = json.loads((evaluated / "work/scores.json").read_text())
    for task, found in report.items():
        with (evaluated / f"work/{task}_classes.csv").open() as file:
            header, box, mean = csv.reader(file)
        assert header == [
            "class",
            "AP50",
            "AP75",
            "AP50:95",
            "AP50_area",
            "recall50",
            "objects",
            "detections",
        ]
        values = found["classes"]["box"]
        assert box == [
            "box",
            *(f"{values[name]:.4f}" for name in header[1:6]),
            *map(str, list(values.values())[5:]),
        ]
        assert mean[:2] == ["mean", f"{found['mAP50']:.4f}"] and mean[5] == ""
        assert (evaluated / f"work/pictures/val_{task}_000000.jpg").exists()
    log = (evaluated / "work/train.log").read_text()
    lines = {words[0]: words for line in log.splitlines() if (words := line.split())}
    assert float(lines["mean"][1]) == pytest.approx(sum(f["mAP50"] for f in report.values()) / 2, abs=0.006)


def test_detections_are_written_as_text(evaluated: Path) -> None:
    assert files(evaluated / "texts") == ["a/1.txt", "a/2.txt", "a/3.txt", "b/big.txt"]
    report = json.loads((evaluated / "work/scores.json").read_text())
    for task, found in report.items():
        lines = [
            line for path in (evaluated / f"texts/{task}").iterdir() for line in path.read_text().splitlines()
        ]
        assert len(lines) == found["classes"]["box"]["detections"] > 3
        assert {tuple(line.split()[8:10]) for line in lines} == {("box", "0")}
    found = rows(evaluated / "texts/b/big.txt")
    assert (np_falling := found[:-1, 8] - found[1:, 8]).min() >= 0 and np_falling.max() > 0
    assert found[:, 0:8:2].mean(1).max() > 64, "of the whole image"


@pytest.mark.slow
def test_two_processes_give_the_same(config: Path, trained: Path, evaluated: Path, tmp_path: Path) -> None:
    args = [config, trained / "vit_t_moe_det", "--device", "cpu", "--work-dir", tmp_path / "work"]
    args += ["--out", tmp_path / "texts", "--submit", f"b={tmp_path / 'b.zip'}"]
    path = REPO / "Object_Detection/tools/test.py"
    for process in start_ranks(path, [str(arg) for arg in args], tmp_path, 2):
        assert process.wait(120) == 0, process.text()
    for name in (
        "work/scores.json",
        "work/a_classes.csv",
        "b.zip",
        *(f"texts/{n}" for n in files(evaluated / "texts")),
    ):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes(), name


# Bad input


def fails(
    error: type[Exception], message: str, config: Path, checkpoint: Path, folder: Path, *options: object
) -> None:
    with pytest.raises(error, match=message):
        evaluate(config, checkpoint, folder / "work", *options)


def test_unknown_task_lists_the_known(config: Path, start: Path, tmp_path: Path) -> None:
    fails(ConfigError, "--tasks c: .*it has a, b", config, start, tmp_path, "--tasks", "a,c")


def test_a_mistyped_checkpoint_leaves_no_folder(config: Path, tmp_path: Path) -> None:
    fails(CheckpointError, "no checkpoint .*typo.pth", config, tmp_path / "typo.pth", tmp_path)
    assert not (tmp_path / "work").exists()


def test_checkpoint_of_another_network(config: Path, start: Path, tmp_path: Path) -> None:
    """Named for weights, and for resumable checkpoints, which do not say what they are."""
    options = ("--cfg-options", "backbone=vit_s")
    message = r"start.*/.*\.pth holds a vit_t_moe, .*config.py has the backbone vit_s"
    fails(ConfigError, message, config, start, tmp_path, *options)
    fails(ConfigError, "vit_t_moe, .*vit_t$", config, start, tmp_path, "--cfg-options", "backbone=vit_t")
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


def test_checkpoint_of_other_tasks_or_classes(config: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "one.pth", {"b": ("box",), "c": ("box",)})
    message = r"one.pth has the tasks b, c, but not a, which .*config.py has; choose among them with --tasks"
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
        r"seg.pth holds no detector but heads of segmentation \(a\)",
        config,
        tmp_path / "seg.pth",
        tmp_path,
    )
    torch.save({"weight": torch.zeros(2)}, tmp_path / "none.pth")
    fails(CheckpointError, "none.pth: unrecognised checkpoint", config, tmp_path / "none.pth", tmp_path)
    fails(CheckpointError, "no checkpoint .*nowhere", config, tmp_path / "nowhere", tmp_path)


def test_resumable_checkpoint_of_another_task_set(trained: Path, tmp_path: Path) -> None:
    """Its data say the classes."""
    options = ("--cfg-options", "tasks.b.classes=[crate]")
    message = "task b: .*iter_2.pth was trained for the classes box, .*has crate"
    fails(ConfigError, message, trained / "config.yaml", trained / "iter_2.pth", tmp_path, *options)


def test_resumable_checkpoint_of_other_enlarged_boxes(trained: Path, tmp_path: Path) -> None:
    """One of before has no settings, and is taken as it is."""
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
    message = r"texts/b/.*big.txt.*: cannot be written \(Is a directory\). Make room"
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


# Submissions


@pytest.fixture(scope="module")
def unlabeled(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with windows of two test images without labels."""
    root = tmp_path_factory.mktemp("unlabeled") / "data"
    shutil.copytree(config.parent, root)
    for image, left in (("P1", 0), ("P1", 52), ("P2", 0)):
        write_image(root / f"t/images/{image}__64__{left}___0.png", picture(64, 64, left))
    return root


def unlabeled_options(root: Path, **more: object) -> list[str]:
    section = {"images": "t/images", "windows": True} | more
    return ["--split", "test", "--cfg-options", f"data_root={root}", f"tasks.b.test={json.dumps(section)}"]


def test_images_without_labels_give_a_submission(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sub/b.zip"
    options = (*unlabeled_options(unlabeled), "--submit", f"b={out}", "--out", tmp_path / "texts")
    assert evaluate(config, start, tmp_path / "work", *options) == 0
    assert not (tmp_path / "work/scores.json").exists()
    assert files(tmp_path / "texts") == ["b/P1.txt", "b/P2.txt"]
    shutil.unpack_archive(out, tmp_path / "zip")
    assert files(tmp_path / "zip") == ["Task1_box.txt"]
    lines = [line.split() for line in (tmp_path / "zip/Task1_box.txt").read_text().splitlines()]
    for image in ("P1", "P2"):
        mine = sorted([*line[2:], line[1]] for line in lines if line[0] == image)
        texts = [line.split() for line in (tmp_path / f"texts/b/{image}.txt").read_text().splitlines()]
        assert mine == sorted([*line[:8], line[10]] for line in texts) and mine
    log = (tmp_path / "work/train.log").read_text()
    assert (
        "b.zip: the classes are of no version of DOTA" in log and "in 2 images, ready to be uploaded" in log
    )


def test_test_images_with_annotations_are_scored(config: Path, start: Path, tmp_path: Path) -> None:
    section = json.dumps({"images": "a/images", "annotations": "a/labelTxt"})
    assert (
        evaluate(config, start, tmp_path, "--split", "test", "--cfg-options", f"tasks.a.test={section}") == 0
    )
    report = json.loads((tmp_path / "scores.json").read_text())
    assert list(report) == ["a"] and report["a"]["split"] == "test" and report["a"]["mAP50"] > 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["test_a_000000.jpg"]
    assert "without images of --split test: b" in (tmp_path / "train.log").read_text()


def test_windows_that_are_written_as_such_are_warned_of(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path
) -> None:
    options = (*unlabeled_options(unlabeled, windows=False), "--out", tmp_path / "texts")
    assert evaluate(config, start, tmp_path / "work", *options) == 0
    assert len(files(tmp_path / "texts")) == 3
    log = (tmp_path / "work/train.log").read_text()
    assert re.search(r"b: 3 of 3 images are windows .*windows=True.* are of single windows", log)


def test_a_submission_that_cannot_be_is_refused_before_the_work(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], message: str, *options: object) -> None:
        fails(error, message, config, start, tmp_path, *options)
        assert not list(tmp_path.glob("*.zip"))

    given = unlabeled_options(unlabeled)
    refused(DataError, r"b.tar: the server takes a .zip", *given, "--submit", f"b={tmp_path}/b.tar")
    refused(ConfigError, "--submit c: no such task is evaluated; there are b", *given, "--submit", "c=x.zip")
    refused(ConfigError, "--submit b.zip: expected TASK=FILE.zip", *given, "--submit", "b.zip")
    refused(
        ConfigError,
        r"b: 3 of 3 images are windows .*windows=True",
        *unlabeled_options(unlabeled, windows=False),
        "--submit",
        "b=b.zip",
    )
    refused(ConfigError, "nothing to do: the images have no annotations; give --out or --submit", *given)
    refused(ConfigError, "--split test: a, b without images to test", "--split", "test")
    refused(ConfigError, "--split test: a without images", *given, "--tasks", "a")
    write_image(unlabeled / "bad/images/P 1__64__0___0.png", picture(64, 64))
    options = unlabeled_options(unlabeled, images="bad/images")
    refused(DataError, "1 of 1 images have '/' or white space: P 1", *options, "--submit", "b=b.zip")
    listed = tmp_path / "list.txt"
    listed.write_text("t/images/P1__64__0___0.png\nt/images/P3__64__0___0.png\n")
    options = unlabeled_options(unlabeled, names=str(listed))
    refused(
        DataError,
        r"list.txt: 1 images \(t/images/P3__64__0___0.png\) that it lists",
        *options,
        "--submit",
        "b=b.zip",
    )
