"""Preparing iSAID."""

import os

import numpy as np
import pytest

from s5.data.check import check_split
from s5.data.image_io import read_image, read_mask, write_image
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.shipped_data import make_isaid, noise


def run_isaid(src, out, *more):
    return main(["isaid", "--src", str(src), "--out", str(out), "--size", "64", *more])


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        ("Semantic_masks/images", "images"),
        ("Semantic_masks/images/images", "images/images"),
        ("images", "images"),
    ],
)
def test_isaid(tmp_path, capsys, masks, images):
    src, out = tmp_path / "my iSAID", tmp_path / "root"
    truth = make_isaid(src, masks, images)
    write_image(src / "train/Instance_masks/images/P0000_instance_id_RGB.png", noise(100, 140))
    assert run_isaid(src, out, "--workers", "2") == 0
    assert "3 source files cut into 8 patches" in capsys.readouterr().out
    train, val = Split("splits/labeled/labeled.txt", out), Split("splits/val.txt", out)
    assert (len(train), len(val)) == (7, 1)
    assert check_split(train, get_table("isaid")).ok and check_split(val, get_table("isaid")).ok
    assert val.name(0) == "labeled/iSAID/val/images/P0003_0_64_0_64.png"
    sample = train.sample(5)
    assert sample.name == "labeled/iSAID/train/images/P0000_36_100_76_140.png"
    assert sample.mask == out / "labeled/iSAID/train/masks/P0000_36_100_76_140.png"
    assert np.array_equal(read_mask(sample.mask), truth["P0000"][36:100, 76:140])
    source = read_image(src / "train" / images / "P0000.png")
    assert np.array_equal(read_image(sample.image), source[36:100, 76:140])
    assert read_image(train.sample(6).image).shape == (40, 50, 3), "small images stay as they are"
    assert run_isaid(src, out) == 0
    assert "nothing to do: 3" in capsys.readouterr().out


def test_isaid_images_behind_a_link(tmp_path):
    src = tmp_path / "isaid"
    make_isaid(src)
    for group in ("train", "val"):
        (src / group / "images").rename(tmp_path / f"dota_{group}")
        (src / group / "images").symlink_to(tmp_path / f"dota_{group}")
    assert run_isaid(src, tmp_path / "root") == 0


def test_isaid_that_is_not_there_says_what_is_expected(tmp_path, capsys):
    src = tmp_path / "isaid"
    make_isaid(src)
    os.remove(src / "val/images/P0003.png")
    (src / "val/images/part1.zip").touch()
    assert run_isaid(src, tmp_path / "root") == 1
    error = capsys.readouterr().err
    assert "val: 0 images and 1 masks, 0 pairs" in error and "train:" not in error
    assert "val/images/part1.zip" in error
    assert (
        f"expected below {src}" in error and "val/Semantic_masks/images/P0003_instance_color_RGB.png" in error
    )
    assert "captain-whu.github.io/iSAID" in error and "captain-whu.github.io/DOTA" in error


def test_isaid_sources_that_do_not_fit_are_listed(tmp_path, capsys):
    src, out = tmp_path / "isaid", tmp_path / "root"
    make_isaid(src)
    masks = src / "train/Semantic_masks/images"
    write_image(src / "train/images/P0100.png", noise(40, 40))
    write_image(src / "train/images/P0101.png", noise(40, 40))
    write_image(masks / "P0101_instance_color_RGB.png", noise(40, 41) * 0)
    write_image(src / "train/images/P0102.png", noise(40, 40))
    strange = noise(40, 40) * 0
    strange[:2] = (9, 9, 9)
    write_image(masks / "P0102_instance_color_RGB.png", strange)
    assert run_isaid(src, out) == 0
    text = capsys.readouterr().out
    assert "3 source files could not be used" in text
    assert "P0100_instance_color_RGB.png: file not found" in text
    assert "40x41 pixels for an image of 40x40" in text
    assert "colour RGB (9, 9, 9) (80 pixels)" in text
    assert len((out / "labeled/iSAID/unusable.txt").read_text().splitlines()) == 3
    assert len(Split("splits/labeled/labeled.txt", out)) == 7
