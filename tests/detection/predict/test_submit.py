"""Test images and submissions: `Object_Detection/tools/test.py --split test --submit`."""

import json
import re
import shutil
from pathlib import Path

import pytest

from s5.data.image_io import write_image
from s5.detection import submission
from s5.errors import ConfigError, DataError
from tests.detection.predict.det_models import evaluate, fails, files, picture


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
    assert "b.zip: DOTA's server would reject these classes" in log and "in 2 images, ready for upload" in log


def test_a_submission_that_fails_leaves_the_detections(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise DataError("P1: invalid detection 0")

    write = submission.pack_dota
    monkeypatch.setattr(
        submission, "pack_dota", lambda out, *rest: (refuse if "a" in out.name else write)(out, *rest)
    )
    section = json.dumps({"images": "a/images"})
    options = (*unlabeled_options(unlabeled), f"tasks.a.test={section}")
    options = (*options, "--submit", f"a={tmp_path / 'a.zip'}", f"b={tmp_path / 'b.zip'}")
    message = "a.zip was not written: P1: invalid detection 0; the detections are in .*work/detections/a"
    fails(DataError, message, config, start, tmp_path, *options)
    assert files(tmp_path / "work/detections") == ["a/1.txt", "a/2.txt", "a/3.txt"]
    assert (tmp_path / "b.zip").exists() and not (tmp_path / "a.zip").exists()


def test_test_images_with_annotations_are_scored(config: Path, start: Path, tmp_path: Path) -> None:
    section = json.dumps({"images": "a/images", "annotations": "a/labelTxt"})
    assert (
        evaluate(config, start, tmp_path, "--split", "test", "--cfg-options", f"tasks.a.test={section}") == 0
    )
    report = json.loads((tmp_path / "scores.json").read_text())
    assert list(report) == ["a"] and report["a"]["split"] == "test" and report["a"]["mAP50"] > 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["test_a_000000.jpg"]
    assert "without images for --split test: b" in (tmp_path / "train.log").read_text()


def test_windows_that_are_written_as_such_are_warned_of(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path
) -> None:
    options = (*unlabeled_options(unlabeled, windows=False), "--out", tmp_path / "texts")
    assert evaluate(config, start, tmp_path / "work", *options) == 0
    assert len(files(tmp_path / "texts")) == 3
    log = (tmp_path / "work/train.log").read_text()
    assert re.search(r"b: .* 3 of 3 images are windows .*windows=True.* written per window", log)


def test_a_submission_that_cannot_be_is_refused_before_the_work(
    config: Path, start: Path, unlabeled: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], message: str, *options: object) -> None:
        fails(error, message, config, start, tmp_path, *options)
        assert not list(tmp_path.glob("*.zip"))

    given = unlabeled_options(unlabeled)
    refused(DataError, r"b.tar: the server accepts zip files", *given, "--submit", f"b={tmp_path}/b.tar")
    refused(
        ConfigError, "--submit c: the task is not evaluated; evaluated are b", *given, "--submit", "c=x.zip"
    )
    refused(ConfigError, "--submit b.zip: expected TASK=FILE.zip", *given, "--submit", "b.zip")
    both = (f"a={tmp_path}/x.zip", f"b={tmp_path}/y/../x.zip")
    refused(ConfigError, "the same file for two tasks; give each its own", "--submit", *both)
    refused(
        ConfigError,
        r"b: .* 3 of 3 images are windows .*windows=True",
        *unlabeled_options(unlabeled, windows=False),
        "--submit",
        "b=b.zip",
    )
    refused(ConfigError, "nothing to do: the images have no annotations; give --out or --submit", *given)
    refused(ConfigError, "--split test: no test images configured for a, b", "--split", "test")
    refused(ConfigError, "--split test: no test images configured for a", *given, "--tasks", "a")
    write_image(unlabeled / "bad/images/P 1__64__0___0.png", picture(64, 64))
    options = unlabeled_options(unlabeled, images="bad/images")
    refused(
        DataError,
        "1 of 1 images have '/' or white space in their names: P 1",
        *options,
        "--submit",
        "b=b.zip",
    )
    listed = tmp_path / "list.txt"
    listed.write_text("t/images/P1__64__0___0.png\nt/images/P3__64__0___0.png\n")
    options = unlabeled_options(unlabeled, names=str(listed))
    refused(
        DataError,
        r"list.txt: 1 listed images \(t/images/P3__64__0___0.png\)",
        *options,
        "--submit",
        "b=b.zip",
    )
