"""No-data is one notion, however a file tells it; and rasters of every sample type go through one reader."""

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from s5.data.image_io import image_size, read_image, read_image_with_valid
from s5.data.rasters import open_raster
from s5.errors import ImageError
from tests.helpers.tiff_files import write_tiff

HEIGHT, WIDTH, EMPTY = 48, 64, 20  # the first columns have no data


@pytest.fixture
def bands():
    """float64 (3, H, W) between 200 and 3000."""
    noise = np.random.default_rng(3).uniform(0, 1, (3, HEIGHT, WIDTH))
    return 200 + 2800 * cv2.GaussianBlur(noise.transpose(1, 2, 0), (5, 5), 2).transpose(2, 0, 1)


def variants(folder, bands, dtype):
    """The same picture with its first columns declared empty in every way that the type allows."""
    pixels = bands.astype(dtype)
    where = np.full((HEIGHT, WIDTH), 255, np.uint8)
    where[:, :EMPTY] = 0
    tagged = pixels.copy()
    tagged[:, :, :EMPTY] = 1
    yield write_tiff(folder / "nodata.tif", tagged, nodata=1)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        yield write_tiff(folder / "internal.tif", pixels, mask=where)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        yield write_tiff(folder / "external.tif", pixels, mask=where)
    assert (folder / "external.tif.msk").exists()
    opaque = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    yield write_tiff(
        folder / "alpha.tif", np.concatenate([pixels, (where[None] > 0) * dtype(opaque)]), alpha=True
    )
    if np.issubdtype(dtype, np.floating):
        tagged[:, :, :EMPTY] = np.nan
        yield write_tiff(folder / "nan.tif", tagged)
        tagged[:, :, :EMPTY] = -3.4028234663852886e38  # lowest float32, a usual choice of GIS programs
        yield write_tiff(folder / "lowest.tif", tagged, nodata=-3.4028234663852886e38)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_no_data_is_the_same_however_it_is_told(tmp_path, bands, dtype):
    bands = bands / 12 if dtype is np.uint8 else bands
    paths = list(variants(tmp_path, bands, dtype))
    images = {}
    for path in paths:
        image, valid = read_image_with_valid(path)
        images[path.name] = image
        assert valid is not None and not valid[:, :EMPTY].any() and valid[:, EMPTY:].all(), path.name
        assert (image[:, :EMPTY] == 0).all(), path.name
        assert np.array_equal(read_image(path), image)
        with open_raster(path) as raster:  # by windows, too
            assert raster.may_lack_data
            window, part = raster.read_with_valid(8, EMPTY - 6, 16, 20)
            assert np.array_equal(window, image[8:24, EMPTY - 6 : EMPTY + 14])
            assert part is not None and part[:, 6:].all() and not part[:, :6].any()
            assert raster.read_with_valid(8, EMPTY, 16, 20)[1] is None
    for name, image in images.items():
        assert np.array_equal(image, images["nodata.tif"]), name
    spread = images["nodata.tif"][:, EMPTY:]
    assert dtype is np.uint8 or spread.min() == 0 and spread.max() == 255, "data alone decide on the stretch"


def test_a_fourth_band_of_infrared_is_no_alpha_although_gdal_says_so(tmp_path, bands):
    infrared = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH))
    path = write_tiff(tmp_path / "rgbi.tif", np.concatenate([bands / 12, infrared]).astype(np.uint8))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha, "what this test is about"
    assert read_image_with_valid(path)[1] is None


@pytest.mark.parametrize(("filled", "expected"), [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_last_band_without_a_mark_is_alpha_if_nothing_else_is_there(
    tmp_path, bands, dtype, filled, expected
):
    """It has the lowest and highest value alone, and nothing is where it is 0: not so a band of labels."""
    last = np.full((1, HEIGHT, WIDTH), np.iinfo(dtype).max, dtype)
    last[:, :, :EMPTY] = 0
    pixels = np.concatenate([(bands / 12).astype(dtype), last])
    if filled:
        pixels[:3, :, :EMPTY] = [[[9]], [[0]], [[7]]]
    path = write_tiff(tmp_path / "a.tif", pixels, photometric="rgb")
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.undefined, "what this test is about"
    valid = read_image_with_valid(path)[1]
    assert (valid is not None) == expected
    assert valid is None or (valid == (last[0] > 0)).all()
    pixels[3, 0, 0] = 1
    assert read_image_with_valid(write_tiff(tmp_path / "b.tif", pixels, photometric="rgb"))[1] is None


@pytest.mark.parametrize(
    ("dtype", "nodata", "declares", "may_lack"),
    [("uint8", None, False, False), ("uint8", 0, True, True)]
    + [("float32", None, False, True), ("float32", np.nan, True, True), ("float32", -9999, True, True)],
)
def test_what_a_file_says_of_its_no_data(tmp_path, bands, dtype, nodata, declares, may_lack):
    path = write_tiff(tmp_path / "a.tif", (bands / 12).astype(dtype), nodata=nodata)
    with open_raster(path) as raster:
        assert (raster.declares_no_data, raster.may_lack_data) == (declares, may_lack)


def test_alpha_of_other_formats(tmp_path, bands):
    rgb = np.ascontiguousarray((bands / 12).astype(np.uint8).transpose(1, 2, 0))
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, :EMPTY] = 0
    rgba = np.concatenate([rgb, alpha], 2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "grey.png")
    Image.fromarray(rgba).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(rgba).save(tmp_path / "lossy.webp")
    cv2.imwrite(str(tmp_path / "deep.png"), rgba.astype(np.uint16) * 257)
    palette = Image.fromarray(np.where(alpha[..., 0] > 0, 1, 0).astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.save(tmp_path / "palette.png", transparency=0)
    for path in sorted(tmp_path.iterdir()):
        image, valid = read_image_with_valid(path)
        assert np.array_equal(valid, alpha[..., 0] > 0), path.name
        assert (image[:, :EMPTY] == 0).all() and image[:, EMPTY:].any(), path.name
    assert np.array_equal(read_image(tmp_path / "a.png")[:, EMPTY:], rgb[:, EMPTY:])
    Image.fromarray(rgb).save(tmp_path / "opaque.png")
    assert read_image_with_valid(tmp_path / "opaque.png")[1] is None


def test_a_transparent_value_of_a_packed_grey_png(tmp_path):
    stripes = np.tile(np.array([0, 1], np.uint8), (HEIGHT, WIDTH // 2))
    Image.fromarray(stripes * 255).convert("1").save(tmp_path / "a.png", transparency=0)
    assert (tmp_path / "a.png").read_bytes()[24] == 1, "one bit a pixel"
    image, valid = read_image_with_valid(tmp_path / "a.png")
    assert np.array_equal(valid, stripes == 1) and np.array_equal(image[..., 0], stripes * 255)


def test_a_no_data_value_in_one_band_only_is_data(tmp_path, bands):
    pixels = bands.astype(np.uint16)
    pixels[1, 5, 7] = 0
    image, valid = read_image_with_valid(write_tiff(tmp_path / "a.tif", pixels, nodata=0))
    assert valid is None and image[5, 7, 1] == 0 and image[5, 7, 0] > 0


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "float64", "complex64", "complex_int16"])
def test_every_sample_type_is_read(tmp_path, bands, dtype):
    scaled = bands / (30 if dtype == "int8" else 1)
    stored = np.dtype("complex64" if dtype.startswith("complex") else dtype)
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", "GTiff", count=3, height=HEIGHT, width=WIDTH, dtype=dtype) as file:
        file.write(scaled.astype(stored))
    image = read_image(path)
    low, high = np.percentile(np.abs(scaled), (0.5, 99.5))
    expected = np.clip((scaled - low) / (high - low) * 255, 0, 255).transpose(1, 2, 0)
    assert np.abs(image - expected).max() <= (8 if dtype == "int8" else 1)


def test_extreme_floats_warn_of_nothing(tmp_path, bands, recwarn):
    bands[0, 0, :3] = [1e300, -1e300, np.inf]
    assert read_image(write_tiff(tmp_path / "a.tif", bands)).shape == (HEIGHT, WIDTH, 3)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_of_several_pages_the_largest_is_read_and_said(tmp_path, bands, caplog):
    rgb = np.ascontiguousarray((bands / 12).astype(np.uint8).transpose(1, 2, 0))
    small = Image.fromarray(np.zeros((6, 8, 3), np.uint8))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(rgb), small])
    assert np.array_equal(read_image(tmp_path / "a.tif"), rgb)
    assert image_size(tmp_path / "a.tif") == (HEIGHT, WIDTH)
    assert "3 pages" in caplog.text and "page 2" in caplog.text and f"{HEIGHT}x{WIDTH}" in caplog.text
    assert caplog.text.count("3 pages") == 1, "once a file"


def test_what_is_too_large_to_decode_says_so(tmp_path, monkeypatch):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr("s5.data.image_io.MAX_PIXELS", 50_000)
    with pytest.raises(
        ImageError, match="a.png: an image of 200x300 .*exceeds the limit of 50000 pixels.*tiled TIFF"
    ):
        read_image(tmp_path / "a.png")


def test_whatever_gdal_raises_names_the_file(tmp_path, monkeypatch):
    from rasterio._err import CPLE_AppDefinedError

    def fail(*args, **kwargs):
        raise CPLE_AppDefinedError(1, 1, "something that no list of exceptions foresaw")

    path = write_tiff(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8))
    monkeypatch.setattr(rasterio, "open", fail)
    with pytest.raises(ImageError, match="a.tif: damaged or unsupported .*foresaw"):
        read_image(path)
