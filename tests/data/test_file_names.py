"""File names that are not UTF-8, as archives packed elsewhere leave them: such files are used, or named."""

import io
import json
import logging
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from s5.command import escape_console
from s5.data import check
from s5.data.image_io import read_image, write_image, write_mask
from s5.data.prepare.__main__ import main
from s5.data.prepare.patches import unique_stems
from s5.data.splits import Split
from s5.detection.submission import require_names
from s5.errors import DataError, ImageError, is_utf8, printable
from s5.launch import Launch, LaunchError, make_work_dir, setup_logging
from s5.training.reports import write_json
from tests.helpers.oriented_data import write_set
from tests.helpers.shipped_data import noise

ODD = os.fsdecode("café_".encode("latin-1"))  # é is the single byte 0xE9
SHOWN = r"caf\xe9_"


@pytest.fixture
def strict(monkeypatch):
    """Replaces stdout and stderr by what most locales give: an error for all that is not UTF-8."""

    def install():  # in the test itself, as pytest puts its own streams there before
        streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", "strict") for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)

        def text(name="stdout"):
            streams[name].flush()
            return streams[name].buffer.getvalue().decode("utf-8")

        return text

    return install


@pytest.fixture
def folder(tmp_path):
    """Four images with masks, of which the last image is truncated."""
    for i in range(4):
        write_image(tmp_path / f"images/{ODD}{i}.png", noise(40, 48, i))
        write_mask(tmp_path / f"masks/{ODD}{i}.png", np.full((40, 48), i % 2, np.uint8))
    damage(tmp_path / f"images/{ODD}3.png")
    return tmp_path


def damage(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_what_cannot_be_printed_is_escaped():
    assert printable(f"a/{ODD}1 Ü 影") == rf"a/{SHOWN}1 Ü 影"
    assert printable("\ud800") == r"\ud800", "no byte of a file name, but a string may hold it"
    assert is_utf8("a/Ü") and not is_utf8(ODD)
    for error in (DataError(f"{ODD}: wrong"), ImageError(f"{ODD}", "wrong")):
        assert str(error) == rf"{SHOWN}: wrong"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert ImageError(ODD, "wrong").path == ODD, "for programs it stays the path"


def test_a_console_of_few_characters(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1", "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)  # as for programs without a console
    escape_console()
    print(f"é 影 {ODD}", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"\xe9 \\u5f71 caf\\xe9_\n"


def test_unlabeled_images_are_cut_under_names_that_are_utf8(folder, strict):
    console = strict()
    assert main(["unlabeled", "--src", str(folder / "images"), "--out", str(folder), "--name", "u"]) == 0
    assert rf"images/{SHOWN}3.png: truncated PNG" in console()
    listed = (folder / "splits/unlabeled/u.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [f"unlabeled/u/cafE9_{i}.png" for i in range(3)]
    assert np.array_equal(
        read_image(Split("splits/unlabeled/u.txt", folder).sample(1).image), noise(40, 48, 1)
    )
    assert rf"{SHOWN}3.png: truncated PNG" in (folder / "unlabeled/u/unusable.txt").read_text(
        encoding="utf-8"
    )


def test_labeled_images_and_objects_of_such_names(folder, tmp_path, strict):
    console = strict()
    damage(folder / f"masks/{ODD}1.png")
    options = ["--masks", str(folder / "masks"), "--labels", "{classes: [a, b]}", "--name", "l"]
    main(["labeled", "--images", str(folder / "images"), *options, "--out", str(folder)])
    assert rf"masks/{SHOWN}1.png: truncated PNG" in console() and rf"images/{SHOWN}3.png: trunc" in console()
    write_set(folder / "dota", count=3)
    for kind, ending in (("images", "png"), ("labels", "txt")):
        for i in range(3):
            (folder / f"dota/{kind}/a{i}.{ending}").rename(folder / f"dota/{kind}/{ODD}{i}.{ending}")
    (folder / "dota/labels").rename(folder / "dota/labelTxt")
    (folder / f"dota/labelTxt/{ODD}0.txt").write_text("1 2 3 ship")
    options = ["--classes", "ship", "plane", "storage-tank", "--size", "64", "--gap", "0"]
    assert main(["dota", "--src", str(folder / "dota"), "--out", str(folder), *options]) == 0
    assert rf"labelTxt/{SHOWN}0.txt, line 1: 4 fields" in console()
    names = [sample.name for sample in Split("dota/splits/train.txt", folder)]
    assert names == [f"dota/train/images/cafE9_{i}__64__0___0.png" for i in (1, 2)]


def test_check_names_the_file(folder, strict):
    console = strict()
    arguments = ["images", "--masks", "masks", "--root", str(folder), "--labels", "{classes: [a, b]}"]
    assert check.main(arguments) == 1
    assert rf"images/{SHOWN}3.png: truncated PNG" in console()
    before = len(console())
    assert check.main([*arguments, "--json"]) == 1
    (error,) = json.loads(console()[before:])["errors"]
    assert error["path"] == rf"{folder}/images/{SHOWN}3.png" and error["kind"] == "corrupt"
    assert is_utf8(error["message"])


def test_tiffs_of_such_names_are_refused_by_name(tmp_path, strict):
    console = strict()
    (tmp_path / "in").mkdir()
    for name in ("good", "bad"):
        write_image(tmp_path / f"in/{name}.png", noise(40, 48))
    Image.open(tmp_path / "in/bad.png").save(tmp_path / "in/bad.tif")
    (tmp_path / "in/bad.png").unlink()
    (tmp_path / "in/bad.tif").rename(tmp_path / f"in/{ODD}.tif")
    assert main(["unlabeled", "--src", str(tmp_path / "in"), "--out", str(tmp_path), "--name", "u"]) == 0
    assert rf"{SHOWN}.tif: TIFFs whose path is not UTF-8 cannot be opened by GDAL" in console()
    assert "1 source files cut into 1 patches" in console()


def test_the_log_of_a_training_run(tmp_path, strict, monkeypatch):
    console = strict()
    logger = logging.getLogger("s5")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    escape_console()
    setup_logging(tmp_path, Launch(torch.device("cpu"), 0, 1))
    logger.warning("skipped unreadable image %s", f"{ODD}3.png")
    assert rf"skipped unreadable image {SHOWN}3.png" in console()
    assert rf"unreadable image {SHOWN}3.png" in (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "Logging error" not in console("stderr")
    logger.handlers[1].close()


def test_a_work_folder_of_such_a_name_is_refused(tmp_path):
    with pytest.raises(LaunchError, match="not UTF-8, as TensorBoard and GDAL .* another --work-dir"):
        make_work_dir(tmp_path / ODD, Launch(torch.device("cpu"), 0, 1))


def test_reports_and_submissions(tmp_path):
    write_json(tmp_path / "a.json", {"checkpoint": f"/runs/{ODD}.pth", "score": float("nan")})
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == {"checkpoint": rf"/runs/{SHOWN}.pth", "score": None}
    with pytest.raises(DataError, match=r"1 of 2 images have names that are not UTF-8: caf\\xe9_"):
        require_names(tmp_path / "a.zip", ["P1", ODD])


def test_patches_of_two_names_that_become_one_differ():
    first, second = unique_stems([f"{ODD}.png", "cafE9_.png"])
    assert first != second and is_utf8(first)


def test_a_name_too_long_for_its_patches_is_listed(tmp_path, capsys):
    name = "x" * 245
    for stem in (name, "a"):
        write_image(tmp_path / f"in/{stem}.bmp", noise(40, 48))
    arguments = ["unlabeled", "--src", str(tmp_path / "in"), "--out", str(tmp_path), "--name", "u"]
    assert main([*arguments, "--size", "32"]) == 0
    assert f"{name}.bmp: its name is too long" in capsys.readouterr().out
    assert len(Split("splits/unlabeled/u.txt", tmp_path)) == 4
