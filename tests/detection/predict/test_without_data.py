"""Detection where images have no data: `predict.py`, `test.py` and the preparation of windows."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from s5.data.image_io import write_image
from s5.data.prepare.__main__ import main as prepare
from s5.detection import predict as det_predict
from s5.detection import results
from s5.detection.network import DetectionModel, on_data
from tests.detection.predict.det_models import evaluate, files, picture, predict, rows, write_geotiff
from tests.helpers.det_runs import SIZE, write_config

HEIGHT, WIDTH = 150, 200
EDGE = 2 * SIZE  # without overlap the columns before it are whole windows


@pytest.fixture
def pixels() -> np.ndarray:
    return np.maximum(picture(HEIGHT, WIDTH), 1)


def variants(folder: Path, pixels: np.ndarray, valid: np.ndarray) -> list[Path]:
    """The same image with its missing part declared in three ways."""
    empty = np.where(valid[..., None], pixels, 0).astype(np.uint8)
    folder.mkdir()
    write_geotiff(folder / "value.tif", empty, nodata=0)
    write_geotiff(folder / "mask.tif", empty)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "mask.tif", "r+") as file:
        file.write_mask(valid)
    write_image(folder / "alpha.png", pixels, valid=valid)
    return [folder / name for name in ("value.tif", "mask.tif", "alpha.png")]


def centers(path: Path) -> np.ndarray:
    return rows(path)[:, :8].reshape(-1, 4, 2).mean(1)


@pytest.mark.parametrize("overlap", [0, 12])
def test_no_detection_has_its_centre_where_there_are_no_data(
    checkpoint: Path,
    model: DetectionModel,
    tmp_path: Path,
    pixels: np.ndarray,
    overlap: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    valid = np.arange(WIDTH)[None] >= np.full((HEIGHT, 1), EDGE - 20 + overlap)
    given = variants(tmp_path / "in", pixels, valid)
    options = ("--overlap", overlap, "--window", SIZE)
    with caplog.at_level(logging.INFO):
        assert predict(checkpoint, tmp_path / "in", tmp_path / "out", *options) == 0
    assert "detections whose centre has no data were dropped" in caplog.text
    for task in ("harbour", "roads"):
        texts = [(tmp_path / f"out/{task}/dota/{path.stem}.txt").read_text() for path in given]
        assert texts[0] == texts[1] == texts[2]
        found = centers(tmp_path / f"out/{task}/dota/value.txt")
        assert len(found) > 5 and found[:, 0].min() >= valid[0].argmax()
        assert json.loads((tmp_path / f"out/{task}/geojson/mask.geojson").read_text())["features"]
        assert (tmp_path / f"out/{task}/drawings/alpha.jpg").exists()


def test_a_window_with_data_everywhere_drops_what_lies_beyond_its_edge(
    checkpoint: Path,
    model: DetectionModel,
    tmp_path: Path,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The window ends where the data ends, so its detections are checked in the image."""
    valid = np.broadcast_to(np.arange(WIDTH) >= EDGE, (HEIGHT, WIDTH))
    given = variants(tmp_path / "in", pixels, valid)
    detect, moved = det_predict._detect, []

    def beyond(*args):  # type: ignore[no-untyped-def]
        detected, dropped = detect(*args)
        for found in detected:
            for task, part in found.items():
                boxes = part.boxes.copy()
                moved.append(boxes[:, 0] < 8)
                boxes[moved[-1], 0] -= 8
                found[task] = part._replace(boxes=boxes)
        return detected, dropped

    monkeypatch.setattr(det_predict, "_detect", beyond)
    monkeypatch.setattr(results, "BLOCK", 50)
    options = ("--overlap", 0, "--window", SIZE, "--tasks", "roads")
    predict(checkpoint, tmp_path / "in", tmp_path / "out", *options)
    assert np.concatenate(moved).any(), "some are moved over the edge"
    for path in given:
        found = centers(tmp_path / f"out/roads/dota/{path.stem}.txt")
        assert len(found) > 3 and found[:, 0].min() >= EDGE


def test_windows_without_any_data_are_not_computed(
    checkpoint: Path,
    model: DetectionModel,
    tmp_path: Path,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[:30, :30] = True
    variants(tmp_path / "in", pixels, valid)
    write_image(tmp_path / "in/nothing.png", pixels, valid=np.zeros_like(valid))
    passes, predict_all = [], DetectionModel.predict_all

    def counted(self, images, *others):  # type: ignore[no-untyped-def]
        passes.append(len(images))
        return predict_all(self, images, *others)

    monkeypatch.setattr(DetectionModel, "predict_all", counted)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--overlap", 0, "--window", SIZE) == 0
    assert sum(passes) == 3
    assert (tmp_path / "out/roads/dota/nothing.txt").read_text() == ""


def test_on_data() -> None:
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 5] = valid[0, 0] = False
    boxes = [[0.9, 0.9], [1.0, 0.5], [4.99, 3], [5.0, 3], [7, 2], [-3, -3], [-3, 9]]
    found = {"bboxes": torch.tensor([[*xy, 2, 1, 0] for xy in boxes]), "scores": torch.arange(7.0)}
    assert on_data(found, valid)["scores"].tolist() == [1, 2, 6], "of a centre outside, the nearest pixel"
    assert on_data(found, None) is found


def test_windows_of_prepared_images_are_scored_alike(
    checkpoint: Path, model: DetectionModel, tmp_path: Path, pixels: np.ndarray
) -> None:
    """`predict.py` on a GeoTIFF of 16 bits, and `test.py` on its windows, which keep where it has data."""
    valid = (np.mgrid[:HEIGHT, :WIDTH].sum(0) > 130) & (np.arange(WIDTH) < 190)
    deep = np.where(valid[..., None], pixels.astype(np.uint16) * 200, 9).astype(np.uint16)
    path = tmp_path / "src/test/images/scene.tif"
    path.parent.mkdir(parents=True)
    size = {"height": HEIGHT, "width": WIDTH, "count": 5, "dtype": "uint16"}
    with rasterio.open(path, "w", "GTiff", **size, nodata=9) as file:
        file.write(np.concatenate([deep, deep[..., :2]], 2).transpose(2, 0, 1))
    arguments = ["--src", str(tmp_path / "src"), "--out", str(tmp_path / "root"), "--classes", "car"]
    assert prepare(["dota", *arguments, "--size", str(SIZE), "--gap", "12", "--workers", "1"]) == 0
    assert len(files(tmp_path / "root/dota/test/images")) == 3 * 4 - 1, "one of the windows has no data"
    section = {"images": "root/dota/test/images", "names": "root/dota/splits/test.txt", "windows": True}
    one = {"images": "-", "annotations": "-"}
    tasks = {"roads": {"classes": ["car"], "train": one, "val": one, "test": section}}
    options = ("--split", "test", "--out", tmp_path / "texts", "--cfg-options", f"tasks={json.dumps(tasks)}")
    assert evaluate(write_config(tmp_path), checkpoint, tmp_path / "work", *options, "precision=fp32") == 0
    predict(checkpoint, path, tmp_path / "alone", "--tasks", "roads", "--overlap", 12)
    ours, theirs = tmp_path / "alone/roads/dota/scene.txt", tmp_path / "texts/roads/scene.txt"
    assert len(rows(ours)) > 5 and has_data(centers(ours), valid).all()
    # Of a centre outside its window, only the whole image can tell.
    lines = np.array(theirs.read_text().splitlines())[has_data(centers(theirs), valid)]
    assert ours.read_text().splitlines() == lines.tolist()


def has_data(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    columns, lines = np.floor(points).astype(int).T
    return valid[lines.clip(0, HEIGHT - 1), columns.clip(0, WIDTH - 1)]


def test_whole_images_of_any_kind_are_scored(
    config: Path, start: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    """`test.py` with the files that `predict.py` takes; both drop what has no data at its centre."""
    valid = np.broadcast_to(np.arange(WIDTH) >= EDGE - 20, (HEIGHT, WIDTH))
    paths = variants(tmp_path / "in", pixels, valid)
    section = {"images": str(tmp_path / "in")}
    one = {"images": "-", "annotations": "-"}
    tasks = {"a": {"classes": ["box"], "train": one, "val": one, "test": section}}
    options = ("--split", "test", "--cfg-options", f"tasks={json.dumps(tasks)}", "precision=fp32")
    assert evaluate(config, start, tmp_path / "work", "--out", tmp_path / "texts", *options) == 0
    assert predict(start, tmp_path / "in", tmp_path / "out", "--window", 1024) == 0
    for path in paths:
        found = centers(tmp_path / f"texts/a/{path.stem}.txt")
        assert 0 < len(found) < 10 and found[:, 0].min() >= EDGE - 20
