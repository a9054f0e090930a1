"""LoveDA's submission: the file, and predictions that must not go into it."""

import zipfile

import cv2
import numpy as np
import pytest
import torch
import yaml

from s5.command import run_command
from s5.data.datasets import TABLES, LoveDA
from s5.data.image_io import read_image, write_image, write_mask
from s5.errors import DataError
from tests.helpers.mdf_runs import REPO, script
from tests.helpers.processes import start_ranks
from tests.helpers.trained_models import write_checkpoint

NAMES = {"Rural/images_png": ["4191", "4192"], "Urban/images_png": ["5167", "5168"]}
STEMS = [stem for stems in NAMES.values() for stem in stems]


@pytest.fixture
def tests(tmp_path):
    """The folders of LoveDA's test part, with two tiny images each."""
    rng = np.random.default_rng(0)
    for folder, stems in NAMES.items():
        for stem in stems:
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            write_image(tmp_path / "Test" / folder / f"{stem}.png", pixels)
    return tmp_path / "Test"


@pytest.fixture
def ids():
    """A prediction of every class 0 to 6 for every test image."""
    rng = np.random.default_rng(1)
    return {stem: rng.integers(0, 7, (24, 32), dtype=np.uint8) for stem in STEMS}


def write_masks(folder, ids, shift=1):
    """Index masks, as `predict.py` writes them with a shift of 1."""
    for part, stems in NAMES.items():
        for stem in stems:
            if stem in ids:
                write_mask(folder / part / f"{stem}.png", ids[stem] + np.uint8(shift))
    return folder


def submit(predictions, images, out, *options, partial=True):
    arguments = ["loveda", str(predictions), "--images", str(images), "--out", str(out), "--device", "cpu"]
    return script("submit").main([*arguments, *options, *(["--partial"] if partial else [])])


def contents(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {
            name: cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            for name in archive.namelist()
        }


def assert_holds(path, ids):
    found = contents(path)
    assert list(found) == [f"{stem}.png" for stem in STEMS]  # flat, in order
    for stem in STEMS:
        assert found[f"{stem}.png"].dtype == np.uint8
        assert np.array_equal(found[f"{stem}.png"], ids[stem])  # one channel


@pytest.mark.parametrize("shift", [0, 1])
def test_masks_that_count_from_0_or_from_1_are_distinguished(tests, ids, tmp_path, shift):
    folder = write_masks(tmp_path / "masks", ids, shift)
    assert submit(folder, tests, tmp_path / "result.zip") == 0
    assert_holds(tmp_path / "result.zip", ids)


def test_the_same_predictions_give_the_same_file(tests, ids, tmp_path):
    folder = write_masks(tmp_path / "masks", ids)
    for name in ("one.zip", "two.zip"):
        submit(folder, tests, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_settings_beside_the_masks_tell_their_values(tests, tmp_path):
    """Where neither a 0 nor a 7 is in the masks."""
    ids = {stem: np.full((24, 32), 3, np.uint8) for stem in STEMS}
    folder = write_masks(tmp_path / "predictions/loveda/index", ids).parent
    with pytest.raises(DataError, match="neither 0 nor 7.*--values raw"):
        submit(tmp_path / "predictions", tests, tmp_path / "result.zip")
    (folder / "prediction.yaml").write_text(yaml.safe_dump({"labels": TABLES["loveda"].as_mapping()}))
    for given in (tmp_path / "predictions", folder, folder / "index"):
        assert submit(given, tests, tmp_path / "result.zip") == 0
        assert_holds(tmp_path / "result.zip", ids)


@pytest.mark.parametrize(("values", "shift"), [("raw", 1), ("ids", 0)])
def test_the_user_says_how_masks_count(tests, tmp_path, values, shift):
    ids = {stem: np.full((24, 32), 3, np.uint8) for stem in STEMS}
    folder = write_masks(tmp_path / "masks", ids, shift)
    assert submit(folder, tests, tmp_path / "result.zip", "--values", values) == 0
    assert_holds(tmp_path / "result.zip", ids)


def refused(folder, tests, tmp_path, message, *options):
    """An error, after which an older file is still there and nothing else."""
    out = tmp_path / "zips/result.zip"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with pytest.raises(DataError, match=message):
        submit(folder, tests, out, *options)
    assert [path.name for path in out.parent.iterdir()] == ["result.zip"]
    assert out.read_bytes() == b"older"


def test_missing_predictions_are_listed(tests, ids, tmp_path):
    del ids["4192"], ids["5168"]
    folder = write_masks(tmp_path / "masks", ids)
    refused(folder, tests, tmp_path, r"2 of 4 predictions are missing: 4192, 5168\. Predict")


def test_predictions_of_other_images_are_listed(tests, ids, tmp_path):
    folder = write_masks(tmp_path / "masks", ids)
    write_mask(folder / "2522.png", ids["4191"])
    refused(folder, tests, tmp_path, "1 predictions do not belong to a test image: 2522")


def test_another_size_than_the_image_is_an_error(tests, ids, tmp_path):
    ids["5167"] = ids["5167"][:20]
    folder = write_masks(tmp_path / "masks", ids)
    refused(folder, tests, tmp_path, "5167.png: 20x32 pixels .*its image .* has 24x32")


def test_values_of_no_class_are_an_error(tests, ids, tmp_path):
    ids["5167"][0, :3] = 200
    folder = write_masks(tmp_path / "masks", ids)
    refused(folder, tests, tmp_path, r"5167.png: value 201 \(3 pixels\) is not a class of LoveDA")


def test_values_that_contradict_what_is_said_are_an_error(tests, ids, tmp_path):
    folder = write_masks(tmp_path / "masks", ids, shift=0)
    refused(folder, tests, tmp_path, r"value 0 \(\d+ pixels\) is not a class.* 1 to 7", "--values", "raw")


def test_masks_with_0_and_7_are_an_error(tests, ids, tmp_path):
    ids["4191"][:] = 6
    ids["4192"] = np.full((24, 32), 255, np.uint8)  # becomes 0
    folder = write_masks(tmp_path / "masks", ids)
    refused(folder, tests, tmp_path, "both 0 and 7")


def test_predictions_of_another_task_are_an_error(tests, ids, tmp_path):
    folder = write_masks(tmp_path / "potsdam/index", ids)
    (tmp_path / "potsdam/prediction.yaml").write_text(
        yaml.safe_dump({"labels": TABLES["potsdam"].as_mapping()})
    )
    refused(folder, tests, tmp_path, "impervious_surface.*not LoveDA's")


def test_two_images_of_one_name_are_an_error(tests, ids, tmp_path):
    folder = write_masks(tmp_path / "masks", ids)
    image = tests / "Rural/images_png/4191.png"
    (tests / "Urban/images_png/4191.png").write_bytes(image.read_bytes())
    refused(folder, tests, tmp_path, "test images with the same name")


def test_the_file_must_be_a_zip(tests, ids, tmp_path):
    with pytest.raises(DataError, match=r"result.rar: the server accepts zip files"):
        submit(write_masks(tmp_path / "masks", ids), tests, tmp_path / "result.rar")


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_the_server_takes_all_test_images_or_none(tests, ids, tmp_path, from_checkpoint):
    predictions = tmp_path / "nowhere.pth" if from_checkpoint else write_masks(tmp_path / "masks", ids)
    out = tmp_path / "zips/result.zip"
    with pytest.raises(DataError, match=r"Test: 4 images, but LoveDA's test split has 1796.*--partial"):
        submit(predictions, tests, out, partial=False)
    assert not out.parent.exists()


@pytest.mark.parametrize(("count", "words"), [(4, "ready for upload"), (5, "server will reject it")])
def test_a_part_is_not_called_ready(tests, ids, tmp_path, monkeypatch, capsys, count, words):
    monkeypatch.setitem(LoveDA.counts, "test", count)
    folder = write_masks(tmp_path / "masks", ids)
    assert submit(folder, tests, tmp_path / "result.zip", partial=count == 5) == 0
    text = capsys.readouterr().out
    assert "result.zip: 4 masks, " in text and words in text and ("ready" in text) == (count == 4)
    assert_holds(tmp_path / "result.zip", ids)


def test_from_a_checkpoint(tests, tmp_path):
    torch.manual_seed(0)
    tables = {"potsdam": TABLES["potsdam"], "loveda": TABLES["loveda"]}
    model = write_checkpoint(tmp_path / "model/vit_t_moe_mdf.pth", tables)
    arguments = (tmp_path / "model/vit_t_moe_mdf.pth", tests, tmp_path / "result.zip", "--precision", "fp32")
    assert submit(*arguments) == 0
    ids = {
        path.stem: model.predict(torch.from_numpy(read_image(path)).permute(2, 0, 1), "loveda").numpy()
        for path in tests.rglob("*.png")
    }
    assert len({int(v) for x in ids.values() for v in np.unique(x)}) > 2
    assert_holds(tmp_path / "result.zip", ids)
    first = (tmp_path / "result.zip").read_bytes()
    (tmp_path / "result_predictions/loveda/index/Urban/images_png/5168.png").unlink()
    assert submit(*arguments) == 0  # goes on
    assert (tmp_path / "result.zip").read_bytes() == first


def test_predictions_of_another_checkpoint_are_overwritten(tests, tmp_path, caplog):
    checkpoint = tmp_path / "model/vit_t_moe_mdf.pth"
    arguments = (checkpoint, tests, tmp_path / "result.zip", "--precision", "fp32")
    for seed in range(2):  # training writes the same file again
        torch.manual_seed(seed)
        model = write_checkpoint(checkpoint, {"loveda": TABLES["loveda"]})
        assert submit(*arguments) == 0
    assert "vit_t_moe_mdf.pth was overwritten; they are predicted again" in caplog.text
    ids = {
        path.stem: model.predict(torch.from_numpy(read_image(path)).permute(2, 0, 1), "loveda").numpy()
        for path in tests.rglob("*.png")
    }
    assert_holds(tmp_path / "result.zip", ids)
    caplog.clear()
    assert submit(checkpoint.with_suffix(""), *arguments[1:]) == 0  # the same file
    assert "predicted again" not in caplog.text


@pytest.mark.slow
def test_several_processes_write_one_file(tests, tmp_path):
    torch.manual_seed(0)
    checkpoint = tmp_path / "model/vit_t_moe_mdf.pth"
    write_checkpoint(checkpoint, {"loveda": TABLES["loveda"]})
    assert submit(checkpoint, tests, tmp_path / "alone.zip", "--precision", "fp32") == 0
    shared = ["loveda", str(checkpoint), "--images", str(tests), "--out", str(tmp_path / "shared.zip")]
    shared += ["--device", "cpu", "--precision", "fp32", "--partial"]
    for process in start_ranks(REPO / "Semantic_Segmentation/submit.py", shared, tmp_path, 2):
        assert process.wait() == 0, process.text()
    assert (tmp_path / "shared.zip").read_bytes() == (tmp_path / "alone.zip").read_bytes()


def test_no_such_folder_is_no_traceback(tests, tmp_path, capsys):
    assert run_command(lambda: submit(tmp_path / "none", tests, tmp_path / "result.zip")) == 1
    assert f"error: no checkpoint {tmp_path}/none" in capsys.readouterr().err
