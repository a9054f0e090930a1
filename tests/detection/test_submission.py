"""The zip that DOTA's server takes."""

import zipfile

import numpy as np
import pytest

from s5.data.oriented.detections import make_detections
from s5.data.oriented.geometry import to_boxes
from s5.detection.submission import check_submission, pack_dota
from s5.errors import DataError
from tests.helpers.oriented_data import CLASSES, detect, rectangles

IMAGES = ["P0001", "P0002", "P0003"]


def detections():
    found = {
        name: detect(rectangles(8, 40, 64, i, classes=2), i, classes=2) for i, name in enumerate(IMAGES[:2])
    }
    return {**found, "P0003": make_detections()}


def test_submission_reads_back_equal(tmp_path):
    out = tmp_path / "deep/task1.zip"
    found = detections()
    counts = pack_dota(out, found, CLASSES, IMAGES)
    assert counts["storage-tank"] == 0 and counts.total() == sum(len(f.scores) for f in found.values())
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"Task1_{name}.txt" for name in CLASSES], "flat, all classes"
        assert archive.read("Task1_storage-tank.txt") == b""
        for label, name in enumerate(CLASSES[:2]):
            rows = [line.split(" ") for line in archive.read(f"Task1_{name}.txt").decode().splitlines()]
            for image in IMAGES[:2]:
                own = found[image].select(found[image].labels == label)
                mine = [row for row in rows if row[0] == image]
                assert np.array_equal(np.array([row[1] for row in mine], np.float32), own.scores), (
                    "all digits"
                )
                boxes = to_boxes(np.array([row[2:] for row in mine], float).reshape(-1, 4, 2))
                assert boxes[:, :2] == pytest.approx(own.boxes[:, :2], abs=0.02)
                assert boxes[:, 2:4].prod(1) == pytest.approx(own.boxes[:, 2:4].prod(1), rel=0.02, abs=0.1)
    assert check_submission(out, CLASSES, IMAGES) == counts
    assert [path.name for path in out.parent.iterdir()] == ["task1.zip"]


def test_same_detections_give_the_same_file(tmp_path):
    for name in ("a.zip", "b.zip"):
        pack_dota(tmp_path / name, detections(), CLASSES, IMAGES)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_empty_submission_is_written_with_a_warning(tmp_path, caplog):
    pack_dota(tmp_path / "a.zip", {name: make_detections() for name in IMAGES}, CLASSES, IMAGES)
    assert "a.zip contains no detections" in caplog.text


def bad(box=(5, 5, 4, 2, 0), score=0.5, label=0):
    return {**detections(), "P0003": make_detections([box], [score], [label])}


@pytest.mark.parametrize(
    ("found", "images", "words"),
    [
        (
            lambda: {name: make_detections() for name in IMAGES[:2]},
            IMAGES,
            ["1 of 3", "P0003", "not been predicted"],
        ),
        (lambda: {**detections(), "P9": make_detections()}, IMAGES, ["P9", "no test images"]),
        (lambda: {"a b": make_detections()}, ["a b"], ["a b", "white space"]),
        (lambda: {"x/a": make_detections()}, ["x/a"], ["x/a", "'/'"]),
        (lambda: bad((5, np.nan, 4, 2, 0)), IMAGES, ["P0003", "detection 0", "nan"]),
        (lambda: bad((5, 5, 0, 2, 0)), IMAGES, ["P0003", "detection 0"]),
        (lambda: bad(score=1.5), IMAGES, ["P0003", "score 1.5"]),
        (lambda: bad(score=np.nan), IMAGES, ["P0003", "score nan"]),
        (lambda: bad(label=3), IMAGES, ["P0003", "label 3 of 3"]),
    ],
)
def test_what_cannot_be_submitted(tmp_path, found, images, words):
    with pytest.raises(DataError) as error:
        pack_dota(tmp_path / "a.zip", found(), CLASSES, images)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_name_of_the_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.tar: the server accepts zip files"):
        pack_dota(tmp_path / "a.tar", detections(), CLASSES, IMAGES)


@pytest.mark.parametrize(
    ("member", "text", "words"),
    [
        ("Task1_ship.txt", "P0001 0.5 1 2 3 4 5 6 7", ["Task1_ship.txt, line 1", "9 fields instead of 10"]),
        ("Task1_ship.txt", "P7 0.5 1 2 3 4 5 6 7 8", ["line 1", "no such image", "P7"]),
        ("Task1_ship.txt", "P0001 7 1 2 3 4 5 6 7 8", ["line 1", "score"]),
        ("Task1_ship.txt", "P0001 0.5 1 2 3 x 5 6 7 8", ["line 1", "'x'"]),
        ("Task1_ship.txt", "P0001 0.5 1 2 3 inf 5 6 7 8", ["line 1", "not finite"]),
        ("folder/Task1_ship.txt", "", ["lacks Task1_ship.txt"]),
        ("readme.txt", "", ["lacks Task1_ship.txt"]),
    ],
)
def test_check_finds_what_is_wrong(tmp_path, member, text, words):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Task1_plane.txt", "P0001 0.5 1 2 3 4 5 6 7 8\n")
        archive.writestr("Task1_storage-tank.txt", "")
        archive.writestr(member, text)
    with pytest.raises(DataError) as error:
        check_submission(path, CLASSES, IMAGES)
    assert str(path) in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_check_finds_further_files_and_broken_zips(tmp_path):
    path = tmp_path / "a.zip"
    pack_dota(path, detections(), CLASSES, IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("Task1_whale.txt", "")
    with pytest.raises(DataError, match=r"should not contain Task1_whale\.txt"):
        check_submission(path, CLASSES, IMAGES)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.zip: cannot be read"):
        check_submission(path, CLASSES, IMAGES)
