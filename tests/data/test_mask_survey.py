"""What only all masks of a dataset together show: preparation and check refuse what cannot be told."""

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from s5.data import stored_mask
from s5.data.check import check_split
from s5.data.folders import pair_folders
from s5.data.image_io import read_mask
from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from s5.data.masks import open_mask
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from s5.errors import DataError
from s5.launch import Launch
from s5.training.experiment import check_codings, check_splits

SIZE = 32
MAP = {
    "name": "map",
    "classes": ["town", "field", "salt"],
    "palette": [[0, 200, 200], [200, 200, 0], [255, 255, 255]],
    "ignore_colors": [[0, 0, 0]],
}
ROOFS = {"name": "roofs", "classes": ["ground", "roof"], "palette": [[0, 0, 0], [255, 255, 255]]}


def save(root, masks):
    """Images, and masks by their names; arrays are written as they are."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, (name, mask) in enumerate(masks.items()):
        rgb = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(rgb).save(root / "images" / f"{name}.png")
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(root / "masks" / f"{name}.png")


def prepare(root, labels):
    """The exit code, and the prepared masks by name."""
    arguments = ["--images", str(root / "images"), "--masks", str(root / "masks"), "--name", "d"]
    code = main(
        ["labeled", *arguments, "--labels", json.dumps(labels), "--out", str(root / "out"), "--workers", "1"]
    )
    samples = [sample for part in ("train", "val") for sample in Split(f"d/splits/{part}.txt", root / "out")]
    return code, {sample.mask.stem.split("_")[0]: read_mask(sample.mask) for sample in samples}


def check(root, labels):
    return check_split(pair_folders("images", "masks", root), get_table(labels))


def rgb_of(ids, labels):
    table = get_table(labels)
    colors = np.array([*table.palette, (0, 0, 0)], np.uint8)
    return colors[np.where(ids == IGNORE, table.num_classes, ids)]


def several(n, classes, seed=0):
    ids = np.random.default_rng(seed).integers(0, classes, (n, SIZE, SIZE), np.uint8)
    return {f"m{i}": ids[i] for i in range(n)}


def test_black_and_white(tmp_path):
    ids = several(6, 2) | {
        "black": np.zeros((SIZE, SIZE), np.uint8),
        "white": np.ones((SIZE, SIZE), np.uint8),
    }
    save(tmp_path, {name: rgb_of(mask, ROOFS) for name, mask in ids.items()})
    code, written = prepare(tmp_path, ROOFS)
    assert code == 0 and written.keys() == ids.keys()
    assert all(np.array_equal(written[name], ids[name]) for name in ids)
    report = check(tmp_path, ROOFS)
    assert report.ok and report.histogram.sum() == 8 * SIZE * SIZE
    grey = {"name": "g", "classes": list("abc"), "palette": [[0] * 3, [128] * 3, [255] * 3]}
    ids = several(4, 3)
    save(tmp_path / "greys", {name: rgb_of(mask, grey) for name, mask in ids.items()})
    code, written = prepare(tmp_path / "greys", grey)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)


def test_tiles_of_one_colour(tmp_path):
    ids = several(5, 3) | {
        "salt": np.full((SIZE, SIZE), 2, np.uint8),
        "none": np.full((SIZE, SIZE), IGNORE, np.uint8),
    }
    save(tmp_path, {name: rgb_of(mask, MAP) for name, mask in ids.items()})
    code, written = prepare(tmp_path, MAP)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)


def test_palettes_in_any_order(tmp_path):
    ids = several(6, 3)
    images = {
        name: Image.fromarray(rgb_of(mask, MAP)).quantize(3 + i, dither=Image.Dither.NONE)
        for i, (name, mask) in enumerate(ids.items())
    }
    assert len({tuple(image.getpalette()[:9]) for image in images.values()} | {()}) > 1
    save(tmp_path, images)
    code, written = prepare(tmp_path, MAP)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)


def test_greys_of_one_channel_among_colours(tmp_path, capsys):
    """As a tool that makes PNG smaller leaves them: white would be ignored, black be a town."""
    ids = several(5, 3)
    save(
        tmp_path,
        {name: rgb_of(mask, MAP) for name, mask in ids.items()}
        | {"white": np.full((SIZE, SIZE), 255, np.uint8), "black": np.zeros((SIZE, SIZE), np.uint8)},
    )
    code, written = prepare(tmp_path, MAP)
    assert code == 0 and written.keys() == ids.keys()
    text = capsys.readouterr().out
    assert "2 source files could not be used" in text
    assert "white.png: has one channel, while other masks, such as" in text
    assert (
        "255 (1024 pixels) is ignored as a value but class 'salt' as the colour RGB (255, 255, 255)" in text
    )
    assert "0 (1024 pixels) is class 'town' as a value but ignored as the colour RGB (0, 0, 0)" in text
    problems = {problem.path: problem for problem in check(tmp_path, MAP).problems}
    assert problems.keys() == {str(tmp_path / f"masks/{name}.png") for name in ("white", "black")}
    assert all(problem.kind == "colours" and problem.message in text for problem in problems.values())


@pytest.mark.parametrize("grey_part", ["train", "val"])
def test_parts_of_a_dataset_are_judged_together(tmp_path, grey_part):
    """Each part alone is consistent; one holds colours, the other greys of one channel."""
    inverse = {**ROOFS, "name": "inverse", "palette": [[255, 255, 255], [0, 0, 0]]}
    table, splits = get_table(inverse), []
    for part in ("train", "val"):
        masks = {name: rgb_of(ids, inverse) for name, ids in several(2, 2).items()}
        if part == grey_part:
            masks = {name: np.ascontiguousarray(rgb[..., 0] * 0) for name, rgb in masks.items()}
        save(tmp_path / part, masks)
        split = pair_folders("images", "masks", tmp_path / part)
        assert check_split(split, table).ok
        splits.append((part, split, table))
    launch = Launch(torch.device("cpu"), 0, 1)
    for _ in range(2):  # from the files, and as it is remembered
        with pytest.raises(DataError, match="(?s)2 masks are ambiguous among the others.*has one channel"):
            check_splits(splits, tmp_path / "work", 1, launch)
    check_splits(splits[:1], tmp_path / "work", 1, launch)


def test_evaluation_refuses_masks_that_cannot_be_told(tmp_path):
    masks = {name: rgb_of(ids, ROOFS) for name, ids in several(3, 2).items()}
    save(tmp_path, masks | {"grey": np.full((SIZE, SIZE), 1, np.uint8) * 0 + 255})
    inverse = get_table({**ROOFS, "values": [255, 0], "ignore": []})
    launch = Launch(torch.device("cpu"), 0, 1)
    with pytest.raises(DataError, match="grey.png: has one channel"):
        check_codings([(pair_folders("images", "masks", tmp_path), inverse)], launch)


def test_pixels_without_data_are_counted_as_ignored(tmp_path):
    ids = several(3, 2)
    save(tmp_path, ids)
    for path in (tmp_path / "images").iterdir():
        rgba = Image.open(path).convert("RGBA")
        alpha = np.full((SIZE, SIZE), 255, np.uint8)
        alpha[:8] = 0
        rgba.putalpha(Image.fromarray(alpha))
        rgba.save(path)
    report = check(tmp_path, {"name": "plain", "classes": ["ground", "roof"]})
    assert report.ok and report.without_data == report.ignored == 3 * 8 * SIZE
    assert report.histogram.tolist() == [sum(int((m[8:] == i).sum()) for m in ids.values()) for i in (0, 1)]
    assert "25.0000 % because the image has no data there" in report.summary()


def test_an_index_outside_the_files_palette_is_refused_without_a_colour_code_too(tmp_path):
    mask = Image.fromarray(np.full((SIZE, SIZE), 2, np.uint8), "P")
    mask.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5])
    save(tmp_path, {"a": mask})
    path = tmp_path / "masks/a.png"
    data = path.read_bytes()
    at = data.index(b"PLTE") - 4  # length, type, colours, checksum
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    chunk = b"PLTE" + bytes([0, 0, 0, 9, 9, 9])
    shorter = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:at] + shorter + data[end:])
    (problem,) = check(tmp_path, {"name": "t", "classes": ["a", "b", "c"]}).problems
    assert "index 2 (1024 pixels) is outside the file's palette of 2 colours" in problem.message


def test_values_beside_colours(tmp_path):
    """What can only be values is read as such; where all masks have one channel, all of them can."""
    ids = several(4, 3)
    masks = {name: mask if i % 2 else rgb_of(mask, MAP) for i, (name, mask) in enumerate(ids.items())}
    save(tmp_path / "a", masks)
    code, written = prepare(tmp_path / "a", MAP)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)
    assert check(tmp_path / "a", MAP).ok
    ids |= {"town": np.zeros((SIZE, SIZE), np.uint8), "none": np.full((SIZE, SIZE), IGNORE, np.uint8)}
    save(tmp_path / "b", ids)
    code, written = prepare(tmp_path / "b", MAP)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)
    assert check(tmp_path / "b", MAP).ok


def test_three_equal_channels_without_a_palette(tmp_path, capsys):
    labels = {"name": "own", "classes": list("abc"), "ignore": [255]}
    ids = several(6, 3)
    masks = {name: np.dstack([mask] * 3) if i < 4 else mask for i, (name, mask) in enumerate(ids.items())}
    save(tmp_path / "a", masks)
    code, written = prepare(tmp_path / "a", labels)
    assert code == 0 and all(np.array_equal(written[name], ids[name]) for name in ids)
    masks["m0"][9, 9] = (1, 1, 2)
    save(tmp_path / "b", masks)
    capsys.readouterr()
    code, written = prepare(tmp_path / "b", labels)
    assert written.keys() == {"m4", "m5"}, "masks of one channel are values in any company"
    text = capsys.readouterr().out
    assert "m0.png: a mask of values has one channel, this has 3 that differ" in text
    assert "m3.png: its three channels are equal, but perhaps only because all its colours are grey" in text
    assert "4 source files could not be used" in text
    assert {problem.kind for problem in check(tmp_path / "b", labels).problems} == {"colours"}


def test_one_damaged_file_decides_nothing(tmp_path, capsys):
    ids = several(4, 2)
    save(tmp_path, {name: rgb_of(mask, ROOFS) for name, mask in ids.items()})
    (tmp_path / "masks/m1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    code, written = prepare(tmp_path, ROOFS)
    assert code == 0 and written.keys() == ids.keys() - {"m1"}
    assert "m1.png: truncated PNG" in capsys.readouterr().out


def test_classes_that_are_declared_no_data(tmp_path, caplog):
    labels = {"name": "own", "classes": ["land", "road"]}
    save(tmp_path, {"a": np.ones((SIZE, SIZE), np.uint8)})
    for name, mask in several(3, 2).items():
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png", transparency=0)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"images/{name}.png")
    code, written = prepare(tmp_path, labels)
    assert code == 0 and all(np.array_equal(written[name], mask) for name, mask in several(3, 2).items())
    assert "3 masks declare 0, class 'land', as no-data. The table takes precedence" in caplog.text


@pytest.mark.parametrize("labels", [ROOFS, {"classes": ["roof"], "values": [255], "ignore": []}])
def test_large_tiffs_are_read_by_windows(tmp_path, monkeypatch, labels):
    """In bounded memory, also to see whether three channels are equal everywhere."""
    rgb = np.zeros((6000, 1500, 3), np.uint8)
    rgb[5000:, 700:] = 255
    Image.fromarray(rgb).save(tmp_path / "m.tif")
    table = get_table(labels, default_name="roofs")
    monkeypatch.setattr(stored_mask, "_BLOCK_PIXELS", 1 << 18)
    with open_mask(tmp_path / "m.tif", table) as mask:
        mask.read(0, 0, 9, 9)  # the table of colours is made once
    tracemalloc.start()
    with open_mask(tmp_path / "m.tif", table) as mask:
        window = mask.read(4990, 690, 20, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (window[10:, 10:] > 0).all() and not window[:10].any()
    assert peak < rgb.nbytes / 10, "the whole mask was read"
