"""Preparing folders of one's own: classes of any form, masks of any form, GeoTIFFs, one or many images."""

import json
import tracemalloc

import numpy as np
import pytest

from s5.data.check import check_split
from s5.data.image_io import read_image, read_mask, write_image, write_mask
from s5.data.labels import get_table
from s5.data.masks import open_mask
from s5.data.prepare import own_data
from s5.data.prepare.__main__ import main
from s5.data.sources import read_labeled
from s5.data.splits import Split
from tests.helpers.shipped_data import class_map, noise, write_tiff

CLASSES = {"classes": ["land", "roof", "road"], "palette": [[9, 9, 9], [200, 30, 30], [255, 255, 255]]}


def run(src, out, *more, labels=CLASSES, name="mine"):
    folders = ["--images", str(src / "images"), "--masks", str(src / "masks")]
    arguments = ["labeled", *folders, "--labels", json.dumps(labels), "--out", str(out), "--name", name]
    return main([*arguments, "--size", "32", "--workers", "1", *more])


def splits(out, name="mine"):
    return [Split(f"{name}/splits/{group}.txt", out) for group in ("train", "val")]


@pytest.fixture
def src(tmp_path):
    """Ten images of several formats in two folders."""
    for i in range(10):
        name = f"north/a {i}" if i % 2 else f"south_{i}"
        ending = (".jpg", ".png", ".TIF", ".bmp")[i % 4]
        image = tmp_path / f"src/images/{name}{ending}"
        (write_tiff if ending == ".TIF" else write_image)(image, noise(40, 50, i))
        write_mask(tmp_path / f"src/masks/{name}.png", class_map(40, 50, 3, i))
    return tmp_path / "src"


def test_folders(src, tmp_path, capsys):
    out = tmp_path / "root"
    assert run(src, out) == 0
    train, val = splits(out)
    assert (len(train), len(val)) == (8 * 4, 2)
    table = get_table(CLASSES, default_name="mine")
    assert check_split(train, table).ok and check_split(val, table).ok
    assert not {s.name.split("/")[-1].rsplit("_", 4)[0] for s in train} & {s.image.stem for s in val}
    assert run(src, out) == 0
    assert "nothing to do: 10" in capsys.readouterr().out
    assert run(src, out, labels={"classes": ["a", "b", "c"]}) == 1
    assert "labels was" in capsys.readouterr().err


def test_an_image_is_never_in_both_lists(src, tmp_path):
    """Fewer images change who is held out; what was cut for validation must leave its list then."""
    out = tmp_path / "root"
    run(src, out)
    before = {sample.image.stem for sample in splits(out)[1]}
    images = [path for path in (src / "images").rglob("*.*") if path.stem.replace(" ", "_") not in before]
    for path in images[:6]:
        path.unlink()
        (src / "masks" / path.relative_to(src / "images")).with_suffix(".png").unlink()
    assert run(src, out) == 0
    train, val = splits(out)
    held = {sample.image.stem for sample in val}
    assert len(held) == 1 and held < before
    cut = {sample.image.stem.rsplit("_", 4)[0] for sample in train}
    assert before - held <= cut and not held & cut
    assert len(train) == 3 * 4


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_colour_coded_masks(tmp_path, ending):
    table = get_table(CLASSES, default_name="mine")
    for i in range(2):
        write_image(tmp_path / f"src/images/{i}.png", noise(40, 50, i))
        colors = table.colorize(class_map(40, 50, 3, i))
        path = tmp_path / f"src/masks/{i}{ending}"
        (write_tiff if ending == ".tif" else write_image)(path, colors)
    assert run(tmp_path / "src", tmp_path / "root", "--val-share", "0.5") == 0
    (sample,) = splits(tmp_path / "root")[1]
    assert np.array_equal(read_mask(sample.mask), class_map(40, 50, 3, int(sample.image.stem)))


def test_single_class_of_0_and_255(tmp_path):
    roof = {"classes": ["roof"], "values": [255], "ignore": []}
    for i in range(4):
        write_image(tmp_path / f"src/images/{i}.png", noise(40, 50, i))
        mask = class_map(40, 50, 2, i) * np.uint8(255)
        write_image(tmp_path / f"src/masks/{i}.png", np.dstack([mask] * 3) if i % 2 else mask)
    assert run(tmp_path / "src", tmp_path / "root", labels=roof) == 0
    train, _ = splits(tmp_path / "root")
    report = check_split(train, get_table(roof, default_name="roof"))
    assert report.ok and (report.histogram > 0).all()


def test_one_large_geotiff_is_divided(tmp_path, capsys):
    ramp = np.linspace(0, 4000, 100 * 70).reshape(100, 70).astype(np.uint16)
    write_tiff(tmp_path / "src/images/scene.tif", ramp)
    mask = class_map(100, 70, 3)
    write_tiff(tmp_path / "src/masks/scene.tif", mask)
    out = tmp_path / "root"
    assert run(tmp_path / "src", out, "--val-size", "40") == 0
    train, val = splits(out)
    covered = np.zeros((100, 70), int)
    whole = read_image(tmp_path / "src/images/scene.tif")
    for part, split in enumerate((train, val)):
        for sample in split:
            top, bottom, left, right = map(int, sample.image.stem.split("_")[1:])
            covered[top:bottom, left:right] |= 1 + part
            assert np.array_equal(read_mask(sample.mask), mask[top:bottom, left:right])
            assert np.array_equal(read_image(sample.image), whole[top:bottom, left:right])
    assert (covered[:80] == 1).all() and (covered[80:] == 2).all(), "the lower fifth is held out"
    assert [sample.image.name for sample in val] == ["scene_80_100_0_35.png", "scene_80_100_35_70.png"]


def test_large_images_are_cut_in_pieces(tmp_path, monkeypatch, capsys):
    """Each is a source of its own: work for several processes, and finished for good."""
    for i in range(2):
        write_tiff(tmp_path / f"src/images/{i}.tif", noise(200, 70, i))
        write_tiff(tmp_path / f"src/masks/{i}.tif", class_map(200, 70, 3, i))
    assert run(tmp_path / "src", tmp_path / "whole") == 0
    assert "2 source files" in capsys.readouterr().out
    monkeypatch.setattr(own_data, "_PIECE_ROWS", 70)
    assert run(tmp_path / "src", tmp_path / "root", "--workers", "2", "--val-size", "64") == 0
    assert "6 source files" in capsys.readouterr().out
    train, val = splits(tmp_path / "root")
    assert sorted(s.name for s in train) == sorted(s.name for s in splits(tmp_path / "whole")[0])
    covered = np.zeros((200, 70), int)
    for sample in val:
        top, bottom, left, right = map(int, sample.image.stem.split("_")[1:])
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_a_damaged_image_is_listed(src, tmp_path, capsys):
    path = next((src / "images").rglob("*.png"))
    path.write_bytes(b"no image")
    assert run(src, tmp_path / "root") == 0
    assert f"{path.name}: is not an image" in capsys.readouterr().out


def test_tiff_masks_are_read_by_windows(tmp_path):
    mask = class_map(3000, 2000, 3)
    write_tiff(tmp_path / "m.tif", mask)
    tracemalloc.start()
    with open_mask(tmp_path / "m.tif", get_table(CLASSES, default_name="mine")) as windows:
        assert (windows.height, windows.width) == (3000, 2000)
        assert np.array_equal(windows.read(2950, 100, 50, 60), mask[2950:, 100:160])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mask.nbytes / 10, "the whole mask was read"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((40, 50), 7, np.uint8), "value 7 (2000 pixels) is not in label table 'mine'"),
        (np.full((40, 50), 700, np.uint16), "whole numbers in 0..255, got uint16 from 700 to 700"),
        (
            np.dstack([np.full((40, 50), v, np.uint8) for v in (1, 2, 3)]),
            "colour RGB (1, 2, 3) (2000 pixels)",
        ),
        (np.zeros((40, 51), np.uint8), "40x51 pixels for an image of 40x50"),
    ],
)
def test_bad_masks_are_listed(tmp_path, capsys, mask, message):
    for i in range(3):
        write_image(tmp_path / f"src/images/{i}.png", noise(40, 50, i))
        write_mask(tmp_path / f"src/masks/{i}.png", class_map(40, 50, 3, i))
    write_image(tmp_path / "src/images/bad.png", noise(40, 50))
    write_tiff(tmp_path / "src/masks/bad.tif", mask)
    run(tmp_path / "src", tmp_path / "root")
    text = capsys.readouterr().out
    assert "1 source files could not be used" in text and message in text


def test_bad_arguments(src, tmp_path, capsys):
    out = tmp_path / "root"
    for more, message in (
        ({"labels": {"classes": ["a", "a"]}}, "two classes have the same name"),
        ({"name": "a/b"}, "--name must consist"),
    ):
        assert run(src, out, **more) == 1
        assert message in capsys.readouterr().err
    assert run(src, out, "--val-share", "1") == 1
    assert "must be between 0 and 1" in capsys.readouterr().err
    (src / "masks/south_0.png").unlink()
    assert run(src, out) == 1
    assert "1 images in" in (error := capsys.readouterr().err) and "south_0.jpg" in error


def test_labels_without_data_do_not_count(tmp_path, capsys):
    """Patches keep where the image has data; reading them for training and validation ignores the rest."""
    src, valid = tmp_path / "src", np.add(*np.mgrid[:64, :96]) > 70
    labels = class_map(64, 96, 3)
    for i in range(4):
        write_image(src / f"images/{i}.png", noise(64, 96, i), valid=valid)
        write_mask(src / f"masks/{i}.png", labels)
    write_image(src / "images/4.png", noise(64, 96), valid=np.zeros_like(valid))
    write_mask(src / "masks/4.png", labels)
    assert run(src, tmp_path / "root", "--val-share", "0.2") == 0
    text = capsys.readouterr().out
    assert "patches without any data left out" in text
    train, val = splits(tmp_path / "root")
    table = get_table(CLASSES, default_name="mine")
    assert len(train) + len(val) in (3 * 5 + 1, 4 * 5), "an image of six patches has five with data"
    assert check_split(train, table).ok and check_split(val, table).ok
    for split in (train, val):
        for sample in split:
            _, label, known = read_labeled(sample, table)
            whole = not sample.image.stem.endswith(("_32", "_64", "_96"))
            top, bottom, left, right = (0, 64, 0, 96) if whole else map(int, sample.image.stem.split("_")[1:])
            part = np.s_[top:bottom, left:right]
            assert np.array_equal(label, np.where(valid, labels, 255)[part])
            assert np.array_equal(read_mask(sample.mask), labels[part]), "the mask itself is as it was"
            assert (known is None) == valid[part].all()
