"""Masks mean what the label table says, however their files store them."""

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from s5.data.check import check_split
from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from s5.data.masks import open_mask, read_ids, read_values
from s5.data.sources import read_labeled
from s5.data.splits import Split, write_split
from tests.helpers.mask_files import CODED, PLAIN, H, W, in_colors, palette_image, picture
from tests.helpers.tiff_files import write_tiff


@pytest.fixture
def ids():
    """Train ids of CODED and what is ignored, in blobs."""
    return np.random.default_rng(5).choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), (H, W))


def test_colours_mean_classes_in_every_format(tmp_path, ids):
    paths = in_colors(tmp_path, picture(ids))
    assert len(paths) == 11
    for path in paths:
        assert np.array_equal(read_ids(path, CODED), ids), path.name
        with open_mask(path, CODED) as mask:
            window = mask.read(5, 7, 10, 20)
        assert np.array_equal(CODED.encode(window, path), ids[5:15, 7:27]), path.name


@pytest.mark.parametrize("train_id", [2, 3, IGNORE])
def test_a_tile_of_one_grey_is_that_colour(tmp_path, train_id):
    """All white, all grey, all black: three equal channels, or a palette of one colour."""
    ids = np.full((H, W), train_id, np.uint8)
    for path in in_colors(tmp_path, picture(ids)):
        assert np.array_equal(read_ids(path, CODED), ids), path.name


def test_black_and_white(tmp_path):
    table = get_table({"classes": ["roof"], "palette": [[255, 255, 255]]}, default_name="roofs")
    ids = np.zeros((H, W), np.uint8)
    ids[4:9, 10:30] = 1
    for path in in_colors(tmp_path, np.repeat(ids[..., None] * np.uint8(255), 3, 2)):
        assert np.array_equal(read_values(path, table), ids), path.name


def in_values(folder, values):
    """Values 0 to 2 in every format that can hold them."""
    for name in ("8.png", "8.bmp", "8.tif"):
        Image.fromarray(values).save(folder / name)
    cv2.imwrite(str(folder / "16.png"), values.astype(np.uint16))
    Image.fromarray(values).convert("P").save(folder / "grey_palette.png")
    for dtype in (np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64):
        write_tiff(folder / f"{np.dtype(dtype).name}.tif", values[None].astype(dtype))
    for name in ("opaque.png", "opaque.tif"):
        Image.fromarray(np.dstack([values, np.full((H, W), 255, np.uint8)]), "LA").save(folder / name)
    return sorted(folder.glob("*.*"))


@pytest.mark.parametrize("palette", [None, [[0, 0, 0], [255, 255, 255], [1, 1, 1]]])
def test_one_channel_means_values(tmp_path, palette):
    table = get_table({"name": "own", "classes": ["a", "b", "c"]} | ({"palette": palette} if palette else {}))
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    paths = in_values(tmp_path, values)
    assert len(paths) == 13
    for path in paths:
        assert np.array_equal(read_ids(path, table), values), path.name


def test_one_bit_means_values(tmp_path):
    """Also where the format gives such files a palette; where white is stored as 0, white is still 1."""
    values = np.random.default_rng(0).integers(0, 2, (H, W), np.uint8)
    for name in ("1.png", "1.bmp", "1.tif"):
        Image.fromarray(values.astype(bool)).save(tmp_path / name)
    Image.fromarray(values.astype(bool)).save(tmp_path / "white_is_0.tif", tiffinfo={262: 0})
    with rasterio.open(tmp_path / "white_is_0.tif") as file:
        assert np.array_equal(file.read(1), 1 - values)
    for palette in ({}, {"palette": [[9, 9, 9], [200, 0, 0]]}):
        table = get_table({"name": "own", "classes": ["a", "b"], **palette})
        for path in tmp_path.glob("*.*"):
            assert np.array_equal(read_ids(path, table), values), path.name


def test_palettes_are_no_concern_without_a_colour_code(tmp_path, ids):
    image, indices, _ = palette_image(picture(ids))
    image.save(tmp_path / "m.png")
    spec = {"name": "own", "classes": list("abcde")}
    for table in (spec, spec | {"palette": [[i, i, 9] for i in range(5)], "color_code": False}):
        assert np.array_equal(read_ids(tmp_path / "m.png", get_table(table)), indices)


def test_no_data_is_ignored(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    where = np.zeros((H, W), bool)
    where[:5] = where[9, 9] = True
    tagged = np.where(where, -9999, values.astype(int))
    write_tiff(tmp_path / "int16.tif", tagged[None].astype(np.int16), nodata=-9999)
    write_tiff(tmp_path / "float.tif", tagged[None].astype(np.float32), nodata=-9999)
    lowest = -3.4028234663852886e38  # float32, a usual choice of GIS programs
    tagged = np.where(where, lowest, values)
    write_tiff(tmp_path / "lowest.tif", tagged[None].astype(np.float32), nodata=lowest)
    write_tiff(tmp_path / "nan.tif", np.where(where, np.nan, values)[None].astype(np.float32))
    write_tiff(tmp_path / "byte.tif", np.where(where, 77, values)[None].astype(np.uint8), nodata=77)
    has_data = np.where(where, 0, 255).astype(np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tiff(tmp_path / "internal.tif", values[None], mask=has_data)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        write_tiff(tmp_path / "external.tif", values[None], mask=has_data)
    assert (tmp_path / "external.tif.msk").exists()
    write_tiff(tmp_path / "alpha.tif", np.stack([values, has_data]), alpha=True)
    Image.fromarray(np.dstack([values, has_data]), "LA").save(tmp_path / "alpha.png")
    Image.fromarray(np.where(where, 77, values).astype(np.uint8)).save(tmp_path / "key.png", transparency=77)
    Image.fromarray(np.dstack([values] * 3 + [has_data])).save(tmp_path / "equal.png")
    expected = np.where(where, IGNORE, values)
    paths = [path for path in sorted(tmp_path.glob("*.*")) if path.suffix != ".msk"]
    assert len(paths) == 11
    for path in paths:
        assert np.array_equal(read_ids(path, PLAIN), expected), path.name


def test_no_data_in_colours_is_ignored(tmp_path, ids):
    rgb = picture(ids)
    rgb[:5] = (1, 2, 3)  # no colour of the table
    has_data = np.full((H, W), 255, np.uint8)
    has_data[:5] = 0
    Image.fromarray(np.dstack([rgb, has_data])).save(tmp_path / "alpha.png")
    write_tiff(tmp_path / "alpha.tif", np.dstack([rgb, has_data]).transpose(2, 0, 1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tiff(tmp_path / "internal.tif", rgb.transpose(2, 0, 1), mask=has_data)
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=(1, 2, 3))
    image, indices, colormap = palette_image(rgb)
    empty = int(indices[0, 0])
    image.save(tmp_path / "palette.png", transparency=empty)
    write_tiff(tmp_path / "palette.tif", indices[None], colormap=colormap, nodata=empty)
    expected = ids.copy()
    expected[:5] = IGNORE
    for path in sorted(tmp_path.glob("*.*")):
        assert np.array_equal(read_ids(path, CODED), expected), path.name


def test_the_table_wins_over_a_declared_value(tmp_path):
    """GIS programs declare 0 to be no data, where 0 is the background."""
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    write_tiff(tmp_path / "m.tif", values[None], nodata=0)
    Image.fromarray(values).save(tmp_path / "m.png", transparency=0)
    image = Image.fromarray(np.zeros((H, W, 3), np.uint8))
    image.save(tmp_path / "image.png")
    for name in ("m.tif", "m.png"):
        assert np.array_equal(read_ids(tmp_path / name, PLAIN), values)
        other = get_table({"name": "own", "classes": ["road", "roof"], "values": [1, 2]})
        assert np.array_equal(read_ids(tmp_path / name, other), np.where(values == 0, IGNORE, values - 1))
    write_split(tmp_path / "s.txt", ["image.png m.tif", "image.png m.png"])
    report = check_split(Split("s.txt", tmp_path), PLAIN)
    (warning,) = report.warnings
    assert report.ok and "2 masks declare 0, class 'land', as no-data. The table takes precedence" in warning
    rgb = np.repeat(values[..., None] * np.uint8(100), 3, 2)
    write_tiff(tmp_path / "c.tif", rgb.transpose(2, 0, 1), nodata=0)
    table = get_table(
        {"name": "own", "classes": ["a", "b", "c"], "palette": [[g] * 3 for g in (0, 100, 200)]}
    )
    assert np.array_equal(read_ids(tmp_path / "c.tif", table), values)
    image, indices, _ = palette_image(rgb)
    image.save(tmp_path / "p.png", transparency=int(indices[rgb[..., 0] == 0][0]))
    assert np.array_equal(read_ids(tmp_path / "p.png", table), values)


def test_the_largest_page_is_the_mask(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    thumbnail = Image.fromarray(values[::4, ::4])
    thumbnail.save(tmp_path / "m.tif", save_all=True, append_images=[Image.fromarray(values)])
    assert np.array_equal(read_ids(tmp_path / "m.tif", PLAIN), values)


def test_training_and_check_read_the_same(tmp_path, ids):
    rgb = picture(ids)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    (tmp_path / "masks").mkdir()
    paths = in_colors(tmp_path / "masks", rgb)
    write_split(tmp_path / "s.txt", [f"image.png masks/{path.name}" for path in paths])
    split = Split("s.txt", tmp_path)
    for sample in split:
        assert np.array_equal(read_labeled(sample, CODED)[1], ids), sample.mask
    report = check_split(split, CODED)
    assert report.ok, report.summary()
    counts = [len(paths) * np.count_nonzero(ids == i) for i in (0, 1, 2, 3, IGNORE)]
    assert [*report.histogram, report.ignored] == counts
    problems = check_split(split, PLAIN).problems
    kinds = {problem.path: problem.kind for problem in problems}
    assert kinds[str(tmp_path / "masks/rgb.png")] == "colours"
    assert check_split(split).ok, "without a table nothing is said of what masks mean"
