"""Preparing DIOR-R as it is shipped."""

import numpy as np
import pytest

from s5.data.datasets.dior_r import CLASSES as DIOR_R
from s5.data.image_io import read_image
from s5.data.oriented.sources import OrientedImages
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.oriented_data import xml
from tests.helpers.shipped_data import DIOR_CORNERS as CORNERS
from tests.helpers.shipped_data import DIOR_NAMES as NAMES
from tests.helpers.shipped_data import DIOR_PARTS as PARTS
from tests.helpers.shipped_data import make_dior_r


def run(src, out, *more):
    return main(["dior_r", "--src", str(src), "--out", str(out), "--workers", "1", *more])


@pytest.fixture
def dior(tmp_path):
    make_dior_r(tmp_path / "DIOR-R")
    return tmp_path / "DIOR-R"


def test_official_parts(dior, tmp_path, capsys):
    out = tmp_path / "root"
    assert run(dior, out, "--workers", "2") == 0
    text = capsys.readouterr().out
    assert "splits/train.txt: 2 samples" in text and "splits/test.txt: 2 samples" in text
    assert "classes: dior_r" in text
    labels = {}
    for part, members in PARTS.items():
        samples = list(Split(f"dior_r/splits/{part}.txt", out))
        assert [sample.image.stem for sample in samples] == members
        for sample in samples:
            original = next(dior.rglob(f"{sample.image.stem}.jpg"))
            assert sample.image.read_bytes() == original.read_bytes()
            assert np.array_equal(read_image(sample.image), read_image(original))
            corners, name, flag = sample.mask.read_text().rsplit(" ", 2)
            assert [float(value) for value in corners.split()] == CORNERS and flag.strip() == "0"
            labels[sample.image.stem] = name
    assert list(labels.values()) == [name.lower() for name in NAMES]
    assert run(dior, out) == 0
    assert "nothing to do: 5" in capsys.readouterr().out


def test_same_as_reading_what_is_shipped(dior, tmp_path):
    run(dior, tmp_path / "root")
    base = tmp_path / "root/dior_r/train"
    prepared = OrientedImages(base / "images", base / "annotations", DIOR_R, size=40)
    shipped = OrientedImages(
        dior / "JPEGImages-trainval/JPEGImages-trainval",
        dior / "Annotations/Oriented Bounding Boxes",
        DIOR_R,
        size=40,
        split=dior / "ImageSets/Main/train.txt",
    )
    for i in range(2):
        first, second = (images.load(i, np.random.default_rng(5)) for images in (prepared, shipped))
        for key in ("image", "boxes", "labels", "name"):
            assert np.array_equal(first[key], second[key])


# Bad input


def test_what_is_unusable_is_listed_and_the_rest_is_done(dior, tmp_path):
    oriented = dior / "Annotations/Oriented Bounding Boxes"
    (oriented / "00001.xml").write_text(xml([("ship", CORNERS)])[:-30])
    (oriented / "00002.xml").unlink()
    (oriented / "00003.xml").write_text(xml([("ship", CORNERS)]).replace("robndbox", "bndbox"))
    image = next(dior.rglob("11726.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    (dior / "ImageSets/Main/test.txt").write_text("11726\n11727\n11728\n")
    (oriented / "11728.xml").write_text(xml([]))
    assert run(dior, tmp_path / "root") == 0
    lines = (tmp_path / "root/dior_r/unusable.txt").read_text().splitlines()
    expected = (
        "11726.jpg: truncated",
        "11728.jpg: file not found",
        "malformed XML",
        "<robndbox>",
        "00002.xml",
    )
    assert len(lines) == 5 and all(any(word in line for line in lines) for word in expected)
    assert len(Split("dior_r/splits/test.txt", tmp_path / "root")) == 1
    assert not (tmp_path / "root/dior_r/splits/train.txt").exists()


@pytest.mark.parametrize("lost", ["ImageSets", "Annotations", "JPEGImages-trainval"])
def test_incomplete_data_set(dior, tmp_path, capsys, lost):
    (dior / lost).rename(tmp_path / lost)
    (dior / f"{lost}.zip").touch()
    if lost == "JPEGImages-trainval":
        (dior / "JPEGImages-test").rename(tmp_path / "other")
    assert run(dior, tmp_path / "root") == 1
    text = capsys.readouterr().err
    assert "DIOR-R" in text and "Oriented Bounding Boxes" in text and f"unpack first: {lost}.zip" in text


def test_real_image(shared, tmp_path):
    sample = shared / "data/rot/dior_r_sample1"
    src = tmp_path / "DIOR-R"
    (src / "Annotations").mkdir(parents=True)
    (src / "JPEGImages-trainval").symlink_to(sample / "images")
    (src / "Annotations/Oriented Bounding Boxes").symlink_to(sample / "Annotations")
    (src / "Main").mkdir()
    (src / "Main/train.txt").write_text("00001\n")
    assert run(src, tmp_path / "root") == 0
    text = (tmp_path / "root/dior_r/train/annotations/00001.txt").read_text()
    assert text == "133.0 237.0 684.0 237.0 684.0 672.0 133.0 672.0 golffield 0\n"
