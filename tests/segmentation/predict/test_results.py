"""Output files of `predict.py`."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from s5.data.image_io import read_image, read_mask, write_image
from s5.data.labels import get_table
from s5.data.prepare.patches import unique_stems
from s5.errors import DataError
from s5.prediction.sources import find_sources
from s5.segmentation.results import paint
from tests.helpers.mdf_runs import REPO
from tests.helpers.processes import start_ranks
from tests.segmentation.predict.predicting import TABLES, expected_ids, files, predict


def test_every_task_gets_masks_colours_and_overlays(checkpoint, model, images, tmp_path):
    out = tmp_path / "out"
    assert predict(checkpoint, images, out, "--overlay-alpha", "0.25") == 0
    names = ["a.png", "deep/b.c.png", "deep/er/d.png"]
    kinds = ("color", "index", "overlay")
    written = [f"{task}/{kind}/{name}" for task in TABLES for kind in kinds for name in names]
    assert files(out) == sorted([*written, *(f"{task}/prediction.yaml" for task in TABLES)])
    varied = set()
    for task, labels in TABLES.items():
        for name, source in zip(names, ("a.png", "deep/b.c.jpg", "deep/er/d.png"), strict=True):
            photo = read_image(images / source)
            ids = labels.encode(read_mask(out / task / "index" / name), name)
            assert np.array_equal(ids, expected_ids(model, photo, task))
            color = read_image(out / task / "color" / name)
            assert np.array_equal(color, labels.colorize(ids))
            overlay = read_image(out / task / "overlay" / name).astype(float)
            assert np.abs(overlay - (0.75 * photo + 0.25 * color)).max() <= 0.51
            varied |= {(task, value) for value in np.unique(ids)}
    assert len(varied) > 3


def test_settings_tell_the_meaning_of_the_values(checkpoint, model, images, tmp_path):
    predict(
        checkpoint, images / "a.png", tmp_path / "out", "--crop", "64", "--tta", "flip", "--scales", "0.5"
    )
    settings = yaml.safe_load((tmp_path / "out/ponds/prediction.yaml").read_text())
    assert settings["labels"] == TABLES["ponds"].as_mapping()
    assert (settings["mode"], settings["crop"], settings["stride"]) == ("slide_window", 64, 48)
    assert (settings["tta"], settings["scales"]) == ("flip", [0.5])


def test_one_task_one_kind_and_another_mode(checkpoint, model, images, tmp_path):
    options = ("--tasks", "roofs", "--formats", "index", "--mode", "original")
    assert predict(checkpoint, images / "a.png", tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == ["roofs/index/a.png", "roofs/prediction.yaml"]


def test_what_exists_is_no_pattern(tmp_path):
    for name in ("plan [2024]/a.png", "plan [2024]/a[1].png", "plan [2024]/deep/b.png", "plan 2/c.png"):
        write_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    found = {
        "plan [2024]": ["a", "a[1]", "deep/b"],
        "plan [2024]/a[1].png": ["a[1]"],
        "plan [2024]/*.png": ["a", "a[1]"],
        "plan [2024]/**/*.png": ["a", "a[1]", "deep/b"],
        "plan [2024]/*/b.png": ["deep/b"],
        "plan [0-9]/*": ["plan 2/c"],
        "plan [[]*/a[[]1].png": ["plan [2024]/a[1]"],
    }
    for given, names in found.items():
        assert [
            str(source.name) for source in find_sources([f"{tmp_path}/{given}"], tmp_path / "out")
        ] == names
    with pytest.raises(
        DataError, match=r"plan \[2024\]/a\[2\].png: no images.*write a literal bracket as \[\[\]"
    ):
        find_sources([f"{tmp_path}/plan [2024]/a[2].png"], tmp_path / "out")


def test_a_pattern_is_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "deep/b.png", np.zeros((8, 8, 3), np.uint8))
    for given in ("*/*.png", "**/*.png"):
        (source,) = find_sources([given], tmp_path / "out")
        assert str(source.path) == str(source.name.with_suffix(".png")) == "deep/b.png"


def test_a_pattern_keeps_the_folders_after_its_fixed_part(images, tmp_path):
    names = [str(source.name) for source in find_sources([f"{images}/deep/**/*"], tmp_path)]
    assert names == ["b.c", "er/d"]
    assert [str(source.name) for source in find_sources([str(images / "deep/er/d.png")], tmp_path)] == ["d"]


def test_processes_share_the_images(checkpoint, model, images, tmp_path):
    (images / "text.jpg").write_text("no image")
    predict(checkpoint, images, tmp_path / "alone")
    shared = [str(checkpoint), str(images), "--out", str(tmp_path / "out"), "--device", "cpu"]
    shared += ["--precision", "fp32"]
    ranks = start_ranks(REPO / "Semantic_Segmentation/predict.py", shared, tmp_path, 3)
    assert [process.wait() for process in ranks] == [1, 0, 0], [process.text() for process in ranks]
    first, *others = (process.text() for process in ranks)
    assert first.count("text.jpg: is not an image") == 1 and "3 images, 2 tasks" in first
    assert not any(word in text for text in others for word in ("text.jpg", "2 tasks", "Traceback"))
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_results_of_images_with_the_same_name_differ(checkpoint, model, images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    one_kind = ("--tasks", "ponds", "--kinds", "index")
    predict(checkpoint, images, tmp_path / "before", *one_kind)
    (images / "a.jpg").write_bytes((images / "deep/b.c.jpg").read_bytes())
    (images / "deep/b.c.png").write_text("not readable")
    assert "share their name" not in caplog.text
    names = dict(zip(("a.jpg", "a.png", "deep/b.c.jpg"), _names(images), strict=False))
    assert len(set(names.values())) == 3
    caplog.clear()
    out = tmp_path / "out"
    assert predict(checkpoint, images, out, *one_kind) == 1
    assert files(out) == sorted(
        [*(f"ponds/index/{name}.png" for name in [*names.values(), "deep/er/d"]), "ponds/prediction.yaml"]
    )
    for key, old in (("a.png", "a"), ("deep/b.c.jpg", "deep/b.c")):
        new = out / f"ponds/index/{names[key]}.png"
        assert new.read_bytes() == (tmp_path / f"before/ponds/index/{old}.png").read_bytes()
    text = f"4 images share their name .*a.jpg are named {names['a.jpg']}, those of .*a.png {names['a.png']}"
    assert len(re.findall(text, caplog.text)) == 1
    assert predict(checkpoint, images, out, "--resume", *one_kind) == 1  # of the image that is not readable
    assert "4 of 5 images are already finished" in caplog.text


def test_marks_depend_on_the_names_alone(images, tmp_path, monkeypatch):
    (images / "a.jpg").write_bytes((images / "deep/b.c.jpg").read_bytes())
    first, second, *others = _names(images)
    assert others == ["deep/b.c", "deep/er/d"]
    assert all(re.fullmatch("a-[0-9a-f]{8}", name) for name in (first, second))
    assert [first, second] == unique_stems(["a.jpg", "a.png"])
    monkeypatch.chdir(images)
    assert _names(".") == _names(f"{images}/../{images.name}/**/*") == [first, second, *others]
    assert _names(images / "a.jpg", "a.jpg", images / "a.png") == [first, second]
    assert _names(images / "a.jpg", "../images/a.jpg") == ["a"]
    copy = tmp_path / "copy/a.jpg"
    copy.parent.mkdir()
    copy.write_bytes((images / "a.jpg").read_bytes())
    several = _names(images / "a.jpg", images / "a.png", copy)
    assert len(set(several)) == 3 and several[1] == second
    assert _names("a.jpg", "a.png", copy) == several


def test_a_name_like_a_mark_is_no_other_result(images):
    (images / "a.jpg").write_bytes((images / "deep/b.c.jpg").read_bytes())
    like = _names(images)[0]
    (images / f"{like}.png").write_bytes((images / "a.png").read_bytes())
    assert len(set(_names(images))) == 5


def _names(*given):
    return [str(source.name) for source in find_sources([*map(str, given)], Path("nowhere"))]


def test_overlays_leave_the_background_as_it_is():
    table = get_table({"name": "roofs", "classes": ["roof"], "palette": [[200, 0, 0]]})
    ids, photo = np.array([[0, 1]], np.uint8), np.full((1, 2, 3), 100, np.uint8)
    assert paint("overlay", ids, table, photo, 0.5).tolist() == [[[100, 100, 100], [150, 50, 50]]]
    assert paint("color", ids, table, photo, 0.5).tolist() == [[[0, 0, 0], [200, 0, 0]]]
