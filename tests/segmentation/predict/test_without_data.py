"""`predict.py` where images have no data, and images that are placed by points or a camera model."""

import cv2
import numpy as np
import pytest
import rasterio
import yaml
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

from s5.data.datasets import TABLES as KNOWN
from s5.data.image_io import read_image, read_image_with_valid, read_mask, write_image
from s5.segmentation import windows as strips
from s5.segmentation.model import SegmentationModel
from tests.helpers.trained_models import table, write_checkpoint
from tests.segmentation.predict.predicting import TABLES, expected_ids, predict

HEIGHT, WIDTH = 110, 150
NO_DATA = {"ponds": 255, "roofs": 0}  # roofs ignores 0


@pytest.fixture
def pixels():
    """Blotches (H, W, 3) without a black pixel."""
    small = np.random.default_rng(2).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.maximum(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), 1)


@pytest.fixture
def valid():
    """A slanted edge, with windows that lack data entirely or partly."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return columns + rows // 3 > 80


def write(path, pixels, mask=None, alpha=None, **profile):
    bands = pixels.transpose(2, 0, 1)
    bands = (
        bands if alpha is None else np.concatenate([bands, np.where(alpha, 255, 0)[None].astype(np.uint8)])
    )
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", "GTiff", **shape, **profile) as file:
        file.write(bands)
        if mask is not None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                file.write_mask(mask)
    return path


def write_kind(kind, folder, pixels, valid):
    """An image that declares in one of several ways where it has data."""
    empty = np.where(valid[..., None], pixels, 0).astype(np.uint8)
    if kind == "nodata":
        return write(folder / "a.tif", empty, nodata=0)
    if kind == "mask":
        return write(folder / "a.tif", pixels, mask=valid)
    if kind == "alpha":
        return write(folder / "a.tif", pixels, alpha=valid)
    if kind == "nan":
        stretched = np.where(valid[..., None], pixels, np.nan).astype(np.float32)
        return write(folder / "a.tif", stretched)
    write_image(folder / "a.png", pixels, valid=valid)
    return folder / "a.png"


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan", "png"])
def test_nothing_is_predicted_where_there_are_no_data(checkpoint, model, tmp_path, pixels, valid, kind):
    given = write_kind(kind, tmp_path, pixels, valid)
    assert predict(checkpoint, given, tmp_path / "out", "--overlay-alpha", "0.25") == 0
    photo, known = read_image_with_valid(given)
    assert np.array_equal(known, valid)
    for task, labels in TABLES.items():
        results = {
            name: tmp_path / f"out/{task}/{name}/{given.name}" for name in ("index", "color", "overlay")
        }
        ids = expected_ids(model, photo, task)  # of the image with black in place of what is missing
        with rasterio.open(results["index"]) as file:
            index = file.read(1)
            assert file.nodata == (None if kind == "png" else NO_DATA[task])
        assert (index[~valid] == NO_DATA[task]).all()
        assert np.array_equal(labels.encode(index, "index")[valid], ids[valid]), "the same elsewhere"
        assert len(np.unique(ids[valid])) > 1
        colors, where = read_image_with_valid(results["color"])
        assert np.array_equal(where, valid)
        assert np.array_equal(colors[valid], labels.colorize(ids)[valid]) and not colors[~valid].any()
        overlay, where = read_image_with_valid(results["overlay"])
        assert np.array_equal(where, valid) and not overlay[~valid].any()
        assert np.abs(overlay - (0.75 * photo + 0.25 * colors))[valid].max() <= 0.51
    settings = yaml.safe_load((tmp_path / "out/roofs/prediction.yaml").read_text())
    assert settings["no_data"] == 0


@pytest.mark.parametrize("kind", ["nodata", "nan"])
def test_images_that_lack_nothing_have_the_results_of_plain_ones(checkpoint, model, tmp_path, pixels, kind):
    """A declared no-data value is handed on, so that tiles of one scene are alike; all else is the same."""
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    given = write_kind(kind, tmp_path, pixels, everywhere)
    photo, known = read_image_with_valid(given)
    assert known is None
    predict(checkpoint, given, tmp_path / "out")
    (tmp_path / "plain").mkdir()
    predict(checkpoint, write(tmp_path / "plain/a.tif", photo), tmp_path / "expected")
    for task in TABLES:
        for name in ("index", "color", "overlay"):
            found, expected = (tmp_path / f"{out}/{task}/{name}/a.tif" for out in ("out", "expected"))
            if (kind, name) == ("nodata", "index"):
                with rasterio.open(found) as file, rasterio.open(expected) as plain:
                    assert file.nodata == NO_DATA[task] and plain.nodata is None
                    assert np.array_equal(file.read(), plain.read())
            else:
                assert found.read_bytes() == expected.read_bytes()


def test_windows_without_data_are_not_computed(checkpoint, model, tmp_path, pixels, monkeypatch):
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[:20, :20] = True
    write_image(tmp_path / "a.png", pixels, valid=valid)
    passes, probabilities = [], SegmentationModel.probabilities

    def counted(self, images, tasks):
        passes.append(len(images))
        return probabilities(self, images, tasks)

    monkeypatch.setattr(SegmentationModel, "probabilities", counted)
    predict(checkpoint, tmp_path / "a.png", tmp_path / "out", "--crop", "32", "--stride", "24")
    assert sum(passes) == 1
    predict(checkpoint, tmp_path / "a.png", tmp_path / "out", "--mode", "original")
    index = read_mask(tmp_path / "out/ponds/index/a.png")
    assert np.array_equal(index == 255, ~valid), "in other modes, too"


@pytest.mark.parametrize("kind", ["nodata", "png"])
def test_an_image_without_any_data(checkpoint, model, tmp_path, pixels, kind):
    given = write_kind(kind, tmp_path, pixels, np.zeros((HEIGHT, WIDTH), bool))
    assert predict(checkpoint, given, tmp_path / "out") == 0
    assert (read_mask(tmp_path / f"out/roofs/index/{given.name}") == 0).all()
    assert not read_image_with_valid(tmp_path / f"out/roofs/overlay/{given.name}")[1].any()


@pytest.mark.parametrize("kind", ["mask", "png"])
def test_strips_of_a_wide_image_give_the_same(checkpoint, model, tmp_path, pixels, valid, monkeypatch, kind):
    wide, where = np.concatenate([pixels, pixels[:, ::-1]], 1), np.concatenate([valid, valid[:, ::-1]], 1)
    given = write_kind(kind, tmp_path, wide, where)
    predict(checkpoint, given, tmp_path / "whole")
    monkeypatch.setattr(strips, "SUMS_BYTES", 5 * 32 * 100 * 4)
    predict(checkpoint, given, tmp_path / "strips")
    for name in ("index", "color", "overlay"):
        whole, parts = (
            read_image_with_valid(tmp_path / f"{out}/roofs/{name}/{given.name}")
            for out in ("whole", "strips")
        )
        assert np.array_equal(whole[0], parts[0])
        assert name == "index" or np.array_equal(whole[1], parts[1])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (table("a", ["x", "y"], ignore=[7, 255]), 255),
        (table("a", ["x", "y"], ignore=[7]), 7),
        (table("a", ["x", "y"], ignore=[]), 255),
        (table("a", ["roof"], values=[255], ignore=[]), 254),
        (KNOWN["loveda"], 0),
        (KNOWN["vaihingen"], 255),
    ],
)
def test_which_value_says_that_there_are_no_data(labels, expected):
    assert labels.no_data == expected and expected not in labels.values


def test_a_table_without_ignored_values(tmp_path, pixels, valid):
    """Masks hold 0 and 255: the highest value that is left says that there are no data."""
    write_checkpoint(
        tmp_path / "model.pth", {"roofs": table("roofs", ["roof"], values=[255], ignore=[])}, "vit_t"
    )
    predict(tmp_path / "model.pth", write_kind("mask", tmp_path, pixels, valid), tmp_path / "out")
    with rasterio.open(tmp_path / "out/roofs/index/a.tif") as file:
        assert file.nodata == 254
        assert np.array_equal(file.read(1) == 254, ~valid)
    assert yaml.safe_load((tmp_path / "out/roofs/prediction.yaml").read_text())["no_data"] == 254


# Where images are


def test_ground_control_points_and_camera_models_are_kept(checkpoint, model, tmp_path, pixels):
    points = [
        GroundControlPoint(r, c, 9 + c * 1e-4, 48 - r * 1e-4, 300, str(r + c))
        for r, c in ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH))
    ]
    coefficients = {
        f"{name}_coeff": [1.0, 0.5] + [0.0] * 18 for name in ("line_num", "line_den", "samp_num", "samp_den")
    }
    offsets = {
        f"{name}_{kind}": 8.0
        for name in ("height", "lat", "line", "long", "samp")
        for kind in ("off", "scale")
    }
    rpcs = RPC(**offsets, **coefficients, err_bias=1.0, err_rand=2.0)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/points.tif", pixels, gcps=points, crs=CRS.from_epsg(4326))
    write(tmp_path / "in/camera.tif", pixels, rpcs=rpcs)
    place = {"crs": CRS.from_epsg(32632), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
    write(tmp_path / "in/both.tif", pixels, rpcs=rpcs, **place)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--tasks", "ponds") == 0
    for kind in ("index", "color", "overlay"):
        results = tmp_path / f"out/ponds/{kind}"
        assert sorted(path.name for path in results.iterdir()) == ["both.tif", "camera.tif", "points.tif"]
        with rasterio.open(results / "points.tif") as file:
            found, crs = file.gcps
            assert [p.asdict() for p in found] == [
                p.asdict() | {"id": str(i + 1), "info": ""} for i, p in enumerate(points)
            ]
            assert crs == CRS.from_epsg(4326) and file.transform.is_identity
        for name in ("camera.tif", "both.tif"):
            with rasterio.open(results / name) as file:
                assert file.rpcs.to_gdal() == rpcs.to_gdal()
                assert file.crs == (place["crs"] if name == "both.tif" else None)


def test_a_png_of_a_palette_with_a_transparent_colour(checkpoint, model, tmp_path):
    from PIL import Image

    index = np.random.default_rng(0).integers(0, 4, (40, 40), dtype=np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30, 30, 30, 200])
    picture.save(tmp_path / "a.png", transparency=0)
    predict(checkpoint, tmp_path / "a.png", tmp_path / "out", "--kinds", "index", "overlay")
    assert np.array_equal(read_mask(tmp_path / "out/ponds/index/a.png") == 255, index == 0)
    assert read_image(tmp_path / "out/ponds/overlay/a.png").shape == (40, 40, 3)
