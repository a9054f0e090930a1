"""Preparing OpenEarthMap: its lists, its regions, and the images that have to come from xBD."""

import numpy as np
import pytest

from s5.data.check import check_split
from s5.data.image_io import read_image, read_mask, write_image
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.shipped_data import (
    HEIGHT,
    OEM_XBD,
    WIDTH,
    make_openearthmap,
    noise,
    pack,
    tree,
    write_tiff,
)

XBD_NAME = OEM_XBD["houston_1.tif"]


@pytest.fixture
def src(tmp_path):
    make_openearthmap(tmp_path / "OpenEarthMap/OpenEarthMap_wo_xBD")
    return tmp_path / "OpenEarthMap"


def run(src, out, *more):
    arguments = ["openearthmap", "--src", str(src), "--out", str(out), "--workers", "1"]
    return main([*arguments, "--size", "32", "--overlap", "0", *more])


def test_without_xbd(src, tmp_path, capsys, caplog):
    out = tmp_path / "root"
    assert run(src, out) == 0
    warning = caplog.text
    assert "1 images of OpenEarthMap come from xBD" in warning and "houston_1.tif" in warning
    assert "https://xview2.org/dataset" in warning and "Continuing without them" in warning
    listed = (out / "openearthmap/missing_xbd.txt").read_text()
    assert listed == f"{XBD_NAME} -> houston/images/houston_1.tif\n"
    assert "5 source files cut into 14 patches" in capsys.readouterr().out
    train, val, test = (Split(f"openearthmap/splits/{group}.txt", out) for group in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (3 * 4, 1, 1)
    assert check_split(train, get_table("openearthmap")).ok
    assert test.sample(0).name == "openearthmap/test/images/aachen_4.png" and test.sample(0).mask is None
    assert train.sample(8).name == "openearthmap/train/images/el_rodeo_1_0_32_0_32.png"


def test_images_stay_whole_by_default(src, tmp_path):
    out = tmp_path / "root"
    assert main(["openearthmap", "--src", str(src), "--out", str(out), "--workers", "1"]) == 0
    train = Split("openearthmap/splits/train.txt", out)
    assert [sample.image.stem for sample in train] == ["aachen_1", "aachen_2", "el_rodeo_1"]
    assert all(read_image(sample.image).shape == (HEIGHT, WIDTH, 3) for sample in train)


def test_pixels_and_masks(src, tmp_path):
    truth = make_openearthmap(src / "again")
    assert run(src / "again", tmp_path / "root") == 0
    sample = Split("openearthmap/splits/val.txt", tmp_path / "root").sample(0)
    assert np.array_equal(read_mask(sample.mask), truth["aachen_3.tif"])
    assert np.array_equal(read_image(sample.image), noise(HEIGHT, WIDTH, 4))


def test_xbd_images_complete_it_later(src, tmp_path, capsys):
    out, xbd = tmp_path / "root", tmp_path / "xbd"
    assert run(src, out) == 0
    write_image(xbd / "train/images" / XBD_NAME, noise(HEIGHT, WIDTH, 77))
    write_image(xbd / "train/images/other_00000001_pre_disaster.png", noise(8, 8))
    capsys.readouterr()
    assert run(src, out, "--xbd", str(xbd), "--require-all") == 0
    assert "1 source files cut into 4 patches, 5 finished before" in capsys.readouterr().out
    assert not (out / "openearthmap/missing_xbd.txt").exists()
    names = [sample.name for sample in Split("openearthmap/splits/train.txt", out)]
    assert "openearthmap/train/images/houston_1_0_32_0_32.png" in names
    patch = read_image(out / "openearthmap/train/images/houston_1_0_32_0_32.png")
    assert np.array_equal(patch, noise(HEIGHT, WIDTH, 77)[:32, :32])


def test_require_all(src, tmp_path, capsys):
    assert run(src, tmp_path / "root", "--require-all") == 1
    error = capsys.readouterr().err
    assert "houston_1.tif" in error and "https://xview2.org/dataset" in error and "missing_xbd.txt" in error


def test_archive_gives_the_same(src, tmp_path):
    assert run(src, tmp_path / "root") == 0
    pack(src, tmp_path / "zip/OpenEarthMap.zip")
    assert run(tmp_path / "zip", tmp_path / "again", "--workers", "2") == 0
    assert tree(tmp_path / "root/openearthmap/train") == tree(tmp_path / "again/openearthmap/train")
    assert tree(tmp_path / "root/openearthmap/splits") == tree(tmp_path / "again/openearthmap/splits")


def test_other_missing_files_are_an_error(src, tmp_path, capsys):
    root = src / "OpenEarthMap_wo_xBD"
    (root / "aachen/images/aachen_1.tif").unlink()
    (root / "aachen/labels/aachen_3.tif").unlink()
    assert run(src, tmp_path / "root") == 1
    error = capsys.readouterr().err
    assert "2 files of train.txt, val.txt and test.txt: images aachen_1.tif, labels aachen_3.tif" in error
    assert "https://zenodo.org/record/7223446" in error
    assert run(src, tmp_path / "root", "--partial") == 1, "the one validation image is lost"
    unusable = (tmp_path / "root/openearthmap/unusable.txt").read_text()
    assert unusable == f"{root / 'aachen/images/aachen_3.tif'}: its label is missing\n"
    assert len(Split("openearthmap/splits/train.txt", tmp_path / "root")) == 2 * 4
    (root / "val.txt").unlink()
    assert run(src, tmp_path / "root") == 1
    assert "no val.txt" in capsys.readouterr().err


def test_a_missing_test_image_is_an_error(src, tmp_path, capsys, caplog):
    """Of these only images are there, and no label is asked for."""
    (src / "OpenEarthMap_wo_xBD/aachen/images/aachen_4.tif").unlink()
    assert run(src, tmp_path / "root") == 1
    assert "1 files of train.txt, val.txt and test.txt: images aachen_4.tif" in capsys.readouterr().err
    assert run(src, tmp_path / "root", "--partial") == 0
    assert "images aachen_4.tif" in caplog.text
    assert not (tmp_path / "root/openearthmap/splits/test.txt").exists()


def test_wrong_xbd_folder(src, tmp_path, capsys):
    assert run(src, tmp_path / "root", "--xbd", str(tmp_path / "no")) == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "packed").mkdir()
    assert run(src, tmp_path / "root", "--xbd", str(tmp_path / "packed")) == 1
    assert "unpack the archives of xBD" in capsys.readouterr().err
    name = "houston-harvey_00000001_pre_disaster"
    write_tiff(tmp_path / f"packed/geotiffs/tier1/images/{name}.tif", noise(64, 64))
    assert run(src, tmp_path / "root", "--xbd", str(tmp_path / "packed")) == 1
    error = capsys.readouterr().err
    assert "1 GeoTIFFs" in error and "GeoTIFF edition" in error and "whose images are PNG" in error
