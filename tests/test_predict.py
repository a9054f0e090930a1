"""`predict.py`: what is written where, what is skipped, and what is said of images that cannot be read."""

import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
import yaml
from mdf_runs import REPO, script
from processes import start_ranks
from rasterio import Affine
from rasterio.crs import CRS
from trained_models import table, write_checkpoint

from s5.data.errors import DataError
from s5.data.geotiff import Raster
from s5.data.image_io import read_image, read_mask, write_image
from s5.data.labels import get_table
from s5.engine import predict_share
from s5.engine.command import run_command
from s5.engine.config import ConfigError
from s5.engine.predict_files import _painted
from s5.engine.predict_sources import find_sources
from s5.models import strips
from s5.models.segmentation_model import SegmentationModel

TABLES = {
    "ponds": table("ponds", ["ground", "water"], values=[10, 20]),
    "roofs": table("roofs", ["ground", "water", "roof"], values=[1, 2, 3], ignore=[0]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("model") / "vit_t_moe_mdf.pth"


@pytest.fixture(scope="module")
def model(checkpoint):
    torch.manual_seed(0)
    return write_checkpoint(checkpoint, TABLES)


@pytest.fixture
def images(tmp_path, model) -> Path:
    """Three images of different sizes and formats in folders."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 50)), ("deep/b.c.jpg", (32, 32)), ("deep/er/d.png", (20, 70))):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        write_image(tmp_path / "images" / name, cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC))
    return tmp_path / "images"


def predict(checkpoint, given, out, *options) -> int:
    arguments = [str(checkpoint), str(given), "--out", str(out), "--device", "cpu", "--precision", "fp32"]
    return script("predict").main([*arguments, *options])


def expected_ids(model, pixels, task):
    return model.predict(torch.from_numpy(pixels).permute(2, 0, 1), task).numpy()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_geotiff(path, pixels, **place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        height, width, count = pixels.shape
        shape = {"height": height, "width": width, "count": count, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", blockysize=4, **shape, **place) as file:
            file.write(pixels.transpose(2, 0, 1))


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
    options = ("--task", "roofs", "--kinds", "index", "--mode", "original")
    assert predict(checkpoint, images / "a.png", tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == ["roofs/index/a.png", "roofs/prediction.yaml"]


def test_a_pattern_keeps_the_folders_after_its_fixed_part(images, tmp_path):
    names = [str(source.name) for source in find_sources(f"{images}/deep/**/*", tmp_path)]
    assert names == ["b.c", "er/d"]
    assert [str(source.name) for source in find_sources(str(images / "deep/er/d.png"), tmp_path)] == ["d"]


def test_results_below_the_input_are_no_input(checkpoint, model, images):
    for _ in range(2):
        assert predict(checkpoint, images, images / "out", "--task", "ponds", "--kinds", "color") == 0
    assert len(files(images / "out")) == 4


def test_resume_leaves_finished_images_alone(checkpoint, model, images, tmp_path):
    out = tmp_path / "out"
    predict(checkpoint, images, out)
    written = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    (out / "ponds/overlay/a.png").unlink()
    assert predict(checkpoint, images, out, "--resume") == 0
    changed = [name for name in files(out) if (out / name).stat().st_mtime_ns != written[name]]
    assert {Path(name).name for name in changed} == {"a.png", "prediction.yaml"}
    assert predict(checkpoint, images, out, "--resume") == 0
    with pytest.raises(ConfigError, match=r"ponds/prediction.yaml.*stride 24, now it is 16"):
        predict(checkpoint, images, out, "--resume", "--stride", "16")


def test_resume_knows_the_checkpoint_by_its_file(checkpoint, model, images, tmp_path):
    copy, out = tmp_path / "copy.pth", tmp_path / "out"
    copy.write_bytes(checkpoint.read_bytes())
    options = ("--task", "ponds", "--kinds", "index")
    predict(copy, images, out, *options)
    before = (out / "ponds/index/a.png").stat().st_mtime_ns
    (tmp_path / "link.pth").symlink_to("copy.pth")
    for same in (tmp_path / "copy", tmp_path / "link", tmp_path / "images/../copy.pth"):
        assert predict(same, images, out, "--resume", *options) == 0
    assert (out / "ponds/index/a.png").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"made with checkpoint .*copy.pth, now it is .*vit_t_moe_mdf.pth"):
        predict(checkpoint, images, out, "--resume", *options)
    with pytest.raises(ConfigError, match="made with precision float32, now it is bfloat16"):
        predict(copy, images, out, "--resume", *options, "--precision", "bf16")
    os.utime(copy, ns=(1, 1))
    with pytest.raises(ConfigError, match=r"made before .*copy.pth was written anew; .*leave out --resume"):
        predict(copy, images, out, "--resume", *options)


def test_no_result_of_another_checkpoint_outlives_an_interruption(
    checkpoint, model, images, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    predict(checkpoint, images, out)
    predict(checkpoint, images, out, "--kinds", "color")  # in the same way: the other kinds are kept
    assert len(files(out)) == 2 * (3 * 3 + 1)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_share, "predict_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, images, out, "--stride", "16", "--task", "roofs", "--kinds", "index")
    left = [name for name in files(out) if "prediction.yaml" not in name]
    assert len(left) == 9 and all(name.startswith("ponds/") for name in left)


def test_a_folder_keeps_to_one_way(checkpoint, model, images, tmp_path):
    """Its settings would be wrong for the results of images that are not predicted now."""
    out = tmp_path / "out"
    predict(checkpoint, images, out, "--kinds", "index")
    with pytest.raises(
        ConfigError, match=r"stride 24, now it is 16, and 2 are of other images.*remove .*out"
    ):
        predict(checkpoint, images / "a.png", out, "--stride", "16")
    assert len(files(out)) == 2 * (3 + 1)
    assert predict(checkpoint, images, out, "--stride", "16", "--kinds", "index") == 0


@pytest.mark.parametrize(
    ("pattern", "out", "found"),
    [
        ("**/*.png", "deep/results", ["a", "deep/er/d"]),
        ("*.png", ".", ["a"]),
        ("**/*.png", ".", ["a", "deep/er/d"]),
        ("deep/*/*.png", ".", ["d"]),
    ],
)
def test_a_pattern_leaves_earlier_results_out(checkpoint, model, images, pattern, out, found):
    before = len(files(images))
    for _ in range(2):
        options = ("--task", "ponds", "--kinds", "index")
        assert predict(checkpoint, f"{images}/{pattern}", images / out, *options) == 0
    assert [Path(source.name).name for source in find_sources(f"{images}/{pattern}", images / out)] == [
        Path(name).name for name in found
    ]
    assert len(files(images)) == before + len(found) + 1


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_strips_of_a_wide_image_give_the_same_results(checkpoint, model, tmp_path, monkeypatch, kind):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 333, 3), dtype=np.uint8)
    source = tmp_path / f"wide.{kind}"
    write_geotiff(source, pixels) if kind == "tif" else write_image(source, pixels)
    predict(checkpoint, source, tmp_path / "whole")
    monkeypatch.setattr(strips, "SUMS_BYTES", 5 * 32 * 100 * 4)
    widths, predict_rows = [], SegmentationModel.predict_rows

    def counted(self, rows, tasks):
        widths.append(rows.width)
        return predict_rows(self, rows, tasks)

    monkeypatch.setattr(SegmentationModel, "predict_rows", counted)
    predict(checkpoint, source, tmp_path / "strips")
    assert len(widths) == 6 and max(widths) <= 100
    for task in TABLES:
        for name, read in (("index", read_mask), ("color", read_image), ("overlay", read_image)):
            result = f"{task}/{name}/wide.{kind}"
            whole = read(tmp_path / "whole" / result)
            assert np.array_equal(read(tmp_path / "strips" / result), whole)
            assert len(np.unique(whole)) > 1


@pytest.mark.parametrize("option", [("--config", "other.yaml"), ("--cfg-options", "crop=64")])
def test_a_configuration_that_is_not_read_is_an_error(checkpoint, model, images, tmp_path, option):
    with pytest.raises(ConfigError, match=f"{option[0]}: .*says itself what it holds.*--mode, --crop and"):
        predict(checkpoint, images, tmp_path / "out", *option)


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


def test_an_error_of_the_main_process_ends_all(checkpoint, model, tmp_path):
    shared = [str(checkpoint), str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    ranks = start_ranks(REPO / "Semantic_Segmentation/predict.py", shared, tmp_path, 2)
    assert [process.wait() for process in ranks] == [1, 1]
    assert "none: no such file or folder" in ranks[0].text()
    assert "error: the main process stopped" in ranks[1].text() and "Traceback" not in ranks[1].text()


def test_unreadable_images_are_named_and_the_others_done(checkpoint, model, images, tmp_path, capsys):
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("no image")
    (images / "empty.tif").write_bytes(b"II*\0")
    out = tmp_path / "out"
    assert predict(checkpoint, images, out, "--task", "ponds", "--kinds", "index") == 1
    said = capsys.readouterr().err
    for name in ("cut.png: truncated PNG", "text.jpg: is not an image", "empty.tif: damaged TIFF"):
        assert f"{images}/{name}" in said
    assert "3 images could not be read; all others are done" in said
    assert files(out / "ponds/index") == ["a.png", "deep/b.c.png", "deep/er/d.png"]


def test_geotiff_keeps_its_place_and_is_read_by_bands(checkpoint, model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (200, 60, 3), dtype=np.uint8)
    place = {"crs": CRS.from_epsg(32632), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
    (tmp_path / "in").mkdir()
    write_geotiff(tmp_path / "in/scene.tif", pixels, **place)
    heights = []
    read = Raster.read

    def counted(self, top=0, left=0, height=None, width=None):
        heights.append(height)
        return read(self, top, left, height, width)

    monkeypatch.setattr(Raster, "read", counted)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--task", "roofs") == 0
    assert max(heights) == 32
    for kind, count in (("index", 1), ("color", 3), ("overlay", 3)):
        with rasterio.open(tmp_path / f"out/roofs/{kind}/scene.tif") as file:
            assert (file.crs, file.transform) == (place["crs"], place["transform"])
            assert (file.count, file.height, file.width) == (count, 200, 60)
    index = read_mask(tmp_path / "out/roofs/index/scene.tif")
    ids = TABLES["roofs"].encode(index, "index")
    assert np.array_equal(ids, expected_ids(model, pixels, "roofs"))
    assert np.array_equal(read_image(tmp_path / "out/roofs/color/scene.tif"), TABLES["roofs"].colorize(ids))


def test_a_plain_tiff_has_no_place(checkpoint, model, tmp_path):
    write_geotiff(tmp_path / "plain.tif", np.full((40, 40, 3), 90, np.uint8))
    assert predict(checkpoint, tmp_path / "plain.tif", tmp_path / "out", "--kinds", "index") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "out/ponds/index/plain.tif") as file:
            assert file.crs is None and file.transform.is_identity


def test_a_tiff_that_breaks_off_leaves_nothing(checkpoint, model, tmp_path, capsys):
    pixels = np.random.default_rng(1).integers(0, 256, (300, 60, 3), dtype=np.uint8)
    write_geotiff(tmp_path / "scene.tif", pixels)
    data = (tmp_path / "scene.tif").read_bytes()
    (tmp_path / "in").mkdir()
    cut = bytearray(data)
    del cut[len(cut) * 3 // 4 :]
    (tmp_path / "in/scene.tif").write_bytes(cut)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out") == 1
    assert "scene.tif: damaged TIFF" in capsys.readouterr().err
    assert [name for name in files(tmp_path / "out") if "prediction.yaml" not in name] == []


def test_unknown_task_lists_the_known(checkpoint, model, images, tmp_path):
    with pytest.raises(ConfigError, match="unknown task 'pools'; this model's tasks: ponds, roofs"):
        predict(checkpoint, images, tmp_path / "out", "--task", "pools")
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name_are_an_error(checkpoint, model, images, tmp_path):
    (images / "a.jpg").write_bytes((images / "deep/b.c.jpg").read_bytes())
    with pytest.raises(DataError, match=r"a.jpg and .*a.png: their results would have the same name"):
        predict(checkpoint, images, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [("nothing", "no such file or folder"), ("*.tif", "no images in it"), ("empty", "no images in it")],
)
def test_no_images_is_an_error(checkpoint, model, images, tmp_path, given, message):
    (images / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        predict(checkpoint, images / given, tmp_path / "out")


def test_a_checkpoint_that_does_not_say_what_it_is(images, tmp_path, capsys):
    torch.manual_seed(0)
    tables = {"vaihingen": table("v", ["a", "b"]), "loveda": table("l", ["a", "b", "c"])}
    model = write_checkpoint(tmp_path / "model/published.pth", tables, published=True)
    config = {
        "data_root": str(tmp_path),
        "tasks": {
            name: {
                "labels": labels.as_mapping(),
                "train": "none.txt",
                "val": "none.txt",
                "evaluation": {"crop": 32, "stride": 24},
            }
            for name, labels in tables.items()
        },
        "crop": 32,
        "model": {"decoder_channels": 8, "expert_channels": 48},
    }
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options = ("--config", str(tmp_path / "tasks.yaml"), "--kinds", "index", "--task", "loveda")
    given = (tmp_path / "model/published.pth", images / "a.png", tmp_path / "out", *options)
    with pytest.raises(ConfigError, match=r"published.pth does not say what network it holds.*--backbone"):
        predict(*given)
    assert predict(*given, "--backbone", "vit_t_moe") == 0
    ids = read_mask(tmp_path / "out/loveda/index/a.png")
    assert np.array_equal(ids, expected_ids(model, read_image(images / "a.png"), "loveda"))


def test_another_backbone_than_the_checkpoints_is_an_error(checkpoint, model, images, tmp_path):
    with pytest.raises(ConfigError, match="--backbone vit_t: .*holds a vit_t_moe"):
        predict(checkpoint, images, tmp_path / "out", "--backbone", "vit_t")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stride", "33"), "--stride 33: stride must be between 1 and the crop of 32"),
        (("--crop", "0"), "--crop 0: at least one pixel"),
        (("--scales", "-1"), "--scales: scales must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_an_error(checkpoint, model, images, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        predict(checkpoint, images, tmp_path / "out", *options)


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(checkpoint, model, images, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"out: cannot be written .*go on with --resume"):
        predict(checkpoint, images, tmp_path / "out")


def test_a_missing_checkpoint_is_no_traceback(images, tmp_path, capsys):
    code = run_command(lambda: predict(tmp_path / "none.pth", images, tmp_path / "out"))
    assert code == 1
    assert f"error: no checkpoint {tmp_path}/none.pth" in capsys.readouterr().err


def test_overlays_leave_the_background_as_it_is():
    table = get_table({"name": "roofs", "classes": ["roof"], "palette": [[200, 0, 0]]})
    ids, photo = np.array([[0, 1]], np.uint8), np.full((1, 2, 3), 100, np.uint8)
    assert _painted("overlay", ids, table, photo, 0.5).tolist() == [[[100, 100, 100], [150, 50, 50]]]
    assert _painted("color", ids, table, photo, 0.5).tolist() == [[[0, 0, 0], [200, 0, 0]]]
