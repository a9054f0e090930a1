"""Preparing LoveDA: parts, scenes, test images without masks, and what is missing."""

import numpy as np
import pytest

from s5.data.check import check_split
from s5.data.datasets import LoveDA
from s5.data.image_io import read_image, read_mask, write_mask
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.shipped_data import HEIGHT, WIDTH, class_map, make_loveda, noise, pack, tree


@pytest.fixture
def src(tmp_path, monkeypatch):
    """Four images of each part, which the dataset takes for all there are."""
    monkeypatch.setattr(LoveDA, "counts", {"train": 4, "val": 4, "test": 4})
    make_loveda(tmp_path / "LoveDA", 2)
    return tmp_path / "LoveDA"


def run(src, out, *more):
    sizes = ["--size", "32", "--overlap", "0"]
    return main(["loveda", "--src", str(src), "--out", str(out), *sizes, "--workers", "1", *more])


def test_folders(src, tmp_path, capsys):
    out = tmp_path / "root"
    assert run(src, out) == 0
    text = capsys.readouterr().out
    assert "12 source files cut into 24 patches" in text and "labels: loveda" in text
    train, val, test = (Split(f"loveda/splits/{group}.txt", out) for group in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (16, 4, 4)
    assert check_split(train, get_table("loveda")).ok and check_split(val, get_table("loveda")).ok
    sample = train.sample(0)
    assert sample.name == "loveda/train/images/Rural/0_0_32_0_32.png"
    assert np.array_equal(read_mask(sample.mask), class_map(HEIGHT, WIDTH, 8, 0)[:32, :32]), (
        "values as shipped"
    )
    assert [sample.name for sample in val] == [
        f"loveda/val/images/{name}.png" for name in ("Rural/4", "Rural/5", "Urban/6", "Urban/7")
    ]
    assert np.array_equal(read_image(val.sample(3).image), noise(HEIGHT, WIDTH, 7)), "whole"
    assert [sample.mask for sample in test] == [None] * 4
    assert test.sample(0).name == "loveda/test/images/Rural/8.png"
    assert test.sample(0).image.read_bytes() == (src / "Test/Rural/images_png/8.png").read_bytes()


def test_images_stay_whole_by_default(src, tmp_path, capsys):
    """All parts, and a list of training and validation images together."""
    out = tmp_path / "root"
    assert main(["loveda", "--src", str(src), "--out", str(out), "--workers", "1"]) == 0
    assert "12 source files cut into 12 patches" in capsys.readouterr().out
    train, val, both = (Split(f"loveda/splits/{name}.txt", out) for name in ("train", "val", "trainval"))
    assert [sample.name for sample in both] == [sample.name for sample in (*train, *val)]
    assert len(both) == 8 and train.sample(0).name == "loveda/train/images/Rural/0.png"
    assert np.array_equal(read_image(train.sample(3).image), noise(HEIGHT, WIDTH, 3))
    assert np.array_equal(read_mask(train.sample(3).mask), class_map(HEIGHT, WIDTH, 8, 3))
    assert main(["loveda", "--src", str(src), "--out", str(out), "--size", "32"]) == 1
    assert "size was 0, is 32" in capsys.readouterr().err
    assert main(["loveda", "--src", str(src), "--out", str(out), "--size", "8"]) == 1
    assert "--size must be 0 (whole images) or at least 16" in capsys.readouterr().err


def test_a_damaged_test_image_is_listed(src, tmp_path, capsys):
    path = src / "Test/Rural/images_png/8.png"
    path.write_bytes(path.read_bytes()[:300])
    (src / "Test/Rural/images_png/9.png").write_text("no image")
    assert run(src, tmp_path / "root") == 0
    said = capsys.readouterr().out
    assert "8.png: truncated PNG" in said and "9.png: is not an image" in said
    assert len(Split("loveda/splits/test.txt", tmp_path / "root")) == 2


def test_archives_give_the_same(src, tmp_path):
    assert run(src, tmp_path / "root") == 0
    for part in ("Train", "Val", "Test"):
        pack(src / part, src / f"{part.upper()}.zip", inside=part)
    assert run(src, tmp_path / "again", "--workers", "2") == 0
    assert tree(tmp_path / "root/loveda/train") == tree(tmp_path / "again/loveda/train")
    assert tree(tmp_path / "root/loveda/splits") == tree(tmp_path / "again/loveda/splits")


def test_unpacked_files_come_before_archives(src, tmp_path):
    (tmp_path / "copy").mkdir()
    make_loveda(tmp_path / "copy", 2, groups=("Train",))
    pack(tmp_path / "copy", src / "Train.zip")
    changed = class_map(HEIGHT, WIDTH, 8, 99)
    write_mask(src / "Train/Rural/masks_png/0.png", changed)
    assert run(src, tmp_path / "root") == 0
    mask = Split("loveda/splits/train.txt", tmp_path / "root").sample(0).mask
    assert np.array_equal(read_mask(mask), changed[:32, :32])


def test_missing_files(src, tmp_path, capsys):
    out = tmp_path / "root"
    (src / "Train/Urban/masks_png/2.png").unlink()
    (src / "Val/Urban/images_png/7.png").unlink()
    (src / "Test/Urban/images_png/11.png").unlink()
    assert run(src, out) == 1
    error = capsys.readouterr().err
    assert "Train: 4 images, 3 masks of 4, 3 usable; without mask: Urban/2\n" in error
    assert "Val: 3 images, 4 masks of 4, 3 usable; without image: Urban/7\n" in error
    assert "Test: 3 images of 4, 3 usable; not there: 11\n" in error
    assert f"expected below {src}" in error and "Train(.zip)/{Urban,Rural}" in error
    assert "https://zenodo.org/record/5706578" in error
    assert run(src, out, "--partial") == 0
    assert len(Split("loveda/splits/train.txt", out)) == 3 * 4
    assert (out / "loveda/unusable.txt").read_text().splitlines() == [
        f"{src}/Train/Urban/images_png/2.png: its mask is missing",
        f"{src}/Val/Urban/masks_png/7.png: its image is missing",
    ]
    assert run(tmp_path / "empty", out) == 1


def test_official_numbers(src, tmp_path, capsys, monkeypatch):
    """Missing images are told by number, the first ones, unless the images are numbered otherwise."""
    monkeypatch.setattr(LoveDA, "counts", {"train": 20, "val": 4, "test": 4})
    assert run(src, tmp_path / "root") == 1
    error = capsys.readouterr().err
    assert "4 usable; not there: 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 6 more\n" in error
    (src / "Train/Urban/images_png/2.png").rename(src / "Train/Urban/images_png/21.png")
    (src / "Train/Urban/masks_png/2.png").rename(src / "Train/Urban/masks_png/21.png")
    assert run(src, tmp_path / "root") == 1
    assert "not there" not in capsys.readouterr().err


def test_without_test_images(src, tmp_path, caplog):
    import shutil

    shutil.rmtree(src / "Test")
    assert run(src, tmp_path / "root") == 0
    assert "no list for submissions" in caplog.text
    assert not (tmp_path / "root/loveda/splits/test.txt").exists()


def test_shifted_masks_are_not_cut(src, tmp_path, capsys):
    write_mask(src / "Train/Rural/masks_png/0.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert run(src, tmp_path / "root") == 0
    text = capsys.readouterr().out
    assert "1 source files could not be used" in text and "masks_png/0.png: value 255 (2000 pixels)" in text
