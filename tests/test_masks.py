"""Masks mean what the label table says, however their files store them."""

import zlib

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from s5.data import image_io
from s5.data.check import check_split
from s5.data.datasets import read_labeled
from s5.data.errors import ImageError, LabelError
from s5.data.labels import IGNORE, get_table
from s5.data.masks import open_mask, read_ids, read_values
from s5.data.splits import Split, write_split

H, W = 24, 37
# A code with white and black: sand is white, what is not mapped is black.
CODED = get_table(
    {
        "name": "coast",
        "classes": ["sea", "wood", "sand", "rock"],
        "values": [4, 3, 2, 1],
        "palette": [[0, 40, 200], [10, 120, 10], [255, 255, 255], [128, 128, 128]],
        "ignore": [0, 255],
        "ignore_colors": [[0, 0, 0]],
    }
)
PLAIN = get_table({"name": "plain", "classes": ["land", "road", "roof"]})
COLORS = np.array([*CODED.palette, (0, 0, 0)], np.uint8)  # by train id, the ignored colour last


@pytest.fixture
def ids():
    """Train ids of CODED and what is ignored, in blobs."""
    return np.random.default_rng(5).choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), (H, W))


def picture(ids):
    return COLORS[np.where(ids == IGNORE, 4, ids)]


def tiff(path, bands, mask=None, alpha=False, colormap=None, **profile):
    """``bands`` (C, H, W) of any type."""
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", "GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
    ) as file:
        if alpha:
            file.colorinterp = [*file.colorinterp[:-1], ColorInterp.alpha]
        file.write(bands)
        if colormap:
            file.write_colormap(1, colormap)
        if mask is not None:
            file.write_mask(mask)
    return path


def palette_image(rgb, seed=0):
    """The picture with a palette in random order, as an optimizer may write it."""
    colors = np.random.default_rng(seed).permutation(np.unique(rgb.reshape(-1, 3), axis=0))
    indices = np.zeros(rgb.shape[:2], np.uint8)
    for index, color in enumerate(colors):
        indices[(rgb == color).all(2)] = index
    image = Image.fromarray(indices, "P")
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image, indices, {i: tuple(map(int, color)) for i, color in enumerate(colors)}


def in_colors(folder, rgb):
    """One picture in every format that can hold it."""
    image, indices, colormap = palette_image(rgb)
    for name in ("rgb.png", "rgb.bmp", "rgb.tif"):
        Image.fromarray(rgb).save(folder / name)
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 90, np.uint8)])
    for name in ("rgba.png", "rgba.tif"):
        Image.fromarray(rgba).save(folder / name)
    image.save(folder / "palette8.png", bits=8)
    image.save(folder / "palette4.png", bits=4)
    if len(colormap) <= 4:
        image.save(folder / "palette2.png", bits=2)
    image.save(folder / "palette.bmp")
    image.save(folder / "palette.tif")
    tiff(folder / "palette16.tif", indices[None].astype(np.uint16), photometric="palette", colormap=colormap)
    tiff(folder / "float.tif", rgb.transpose(2, 0, 1).astype(np.float32))
    return sorted(folder.glob("*.*"))


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
        tiff(folder / f"{np.dtype(dtype).name}.tif", values[None].astype(dtype))
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
    tiff(tmp_path / "int16.tif", tagged[None].astype(np.int16), nodata=-9999)
    tiff(tmp_path / "float.tif", tagged[None].astype(np.float32), nodata=-9999)
    lowest = -3.4028234663852886e38  # float32, a usual choice of GIS programs
    tiff(tmp_path / "lowest.tif", np.where(where, lowest, values)[None].astype(np.float32), nodata=lowest)
    tiff(tmp_path / "nan.tif", np.where(where, np.nan, values)[None].astype(np.float32))
    tiff(tmp_path / "byte.tif", np.where(where, 77, values)[None].astype(np.uint8), nodata=77)
    has_data = np.where(where, 0, 255).astype(np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        tiff(tmp_path / "internal.tif", values[None], mask=has_data)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        tiff(tmp_path / "external.tif", values[None], mask=has_data)
    assert (tmp_path / "external.tif.msk").exists()
    tiff(tmp_path / "alpha.tif", np.stack([values, has_data]), alpha=True)
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
    tiff(tmp_path / "alpha.tif", np.dstack([rgb, has_data]).transpose(2, 0, 1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        tiff(tmp_path / "internal.tif", rgb.transpose(2, 0, 1), mask=has_data)
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=(1, 2, 3))
    image, indices, colormap = palette_image(rgb)
    empty = int(indices[0, 0])
    image.save(tmp_path / "palette.png", transparency=empty)
    tiff(tmp_path / "palette.tif", indices[None], colormap=colormap, nodata=empty)
    expected = ids.copy()
    expected[:5] = IGNORE
    for path in sorted(tmp_path.glob("*.*")):
        assert np.array_equal(read_ids(path, CODED), expected), path.name


def test_the_table_wins_over_a_declared_value(tmp_path):
    """GIS programs declare 0 to be no data, where 0 is the background."""
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    tiff(tmp_path / "m.tif", values[None], nodata=0)
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
    assert report.ok and "2 masks declare 0, class 'land', to be no data. The table decides" in warning
    rgb = np.repeat(values[..., None] * np.uint8(100), 3, 2)
    tiff(tmp_path / "c.tif", rgb.transpose(2, 0, 1), nodata=0)
    table = get_table(
        {"name": "own", "classes": ["a", "b", "c"], "palette": [[g] * 3 for g in (0, 100, 200)]}
    )
    assert np.array_equal(read_ids(tmp_path / "c.tif", table), values)
    image, indices, _ = palette_image(rgb)
    image.save(tmp_path / "p.png", transparency=int(indices[rgb[..., 0] == 0][0]))
    assert np.array_equal(read_ids(tmp_path / "p.png", table), values)


def test_no_data_needs_an_ignored_value(tmp_path):
    table = get_table({"name": "roofs", "classes": ["roof"], "values": [255]})
    values = np.zeros((H, W), np.uint8)
    values[3:6] = 255
    alpha = np.full((H, W), 255, np.uint8)
    alpha[:2] = 0
    Image.fromarray(np.dstack([values, alpha]), "LA").save(tmp_path / "m.png")
    with pytest.raises(LabelError, match=r"m.png: 74 pixels have no data, .*'roofs'.*ignore: \[254\]"):
        read_ids(tmp_path / "m.png", table)
    table = get_table({"name": "roofs", "classes": ["roof"], "values": [255], "ignore": [254]})
    assert read_ids(tmp_path / "m.png", table)[[0, 2, 4], 0].tolist() == [IGNORE, 0, 1]


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_single_pixel_is_found(tmp_path, name):
    """Reduced copies, on which it cannot be seen, decide nothing."""
    rgb = np.full((3000, 3000, 3), 255, np.uint8)
    rgb[1000:] = 128
    rgb[2001, 1500] = (0, 40, 200)
    Image.fromarray(rgb).save(tmp_path / name, **({"compression": "tiff_deflate"} if name == "m.tif" else {}))
    with open_mask(tmp_path / name, CODED) as mask:
        assert (mask.read(0, 0, 512, 512) == 2).all(), "white is a class also where all channels are equal"
        assert mask.read(2001, 1490, 1, 20)[0].tolist() == [1] * 10 + [4] + [1] * 9
    rgb[2001, 1500] = (0, 41, 200)
    Image.fromarray(rgb).save(tmp_path / name)
    message = r"colour RGB \(0, 41, 200\) \(1 pixels\).*nearest .* RGB \(0, 40, 200\), class 'sea'"
    with pytest.raises(LabelError, match=f"{name}: {message}"):
        read_ids(tmp_path / name, CODED)
    with open_mask(tmp_path / name, CODED) as mask, pytest.raises(LabelError, match=message):
        mask.read(1900, 1400, 200, 200)
    with pytest.raises(ImageError, match=r"3 that differ.*RGB \(0, 41, 200\).*palette"):
        read_values(tmp_path / name, PLAIN)
    with pytest.raises(ImageError, match="3 that differ"), open_mask(tmp_path / name, PLAIN) as mask:
        mask.read(0, 0, 16, 16)


def test_errors_count_over_the_whole_mask(tmp_path):
    rgb = np.full((60, 50, 3), 255, np.uint8)
    rgb[::10, :7] = (1, 2, 3)
    tiff(tmp_path / "c.tif", rgb.transpose(2, 0, 1))
    with open_mask(tmp_path / "c.tif", CODED) as mask, pytest.raises(LabelError, match=r"\(42 pixels\)"):
        mask.read(0, 0, 5, 50)
    values = np.zeros((60, 50), np.uint8)
    values[::10, :7] = 9
    tiff(tmp_path / "v.tif", values[None])
    with open_mask(tmp_path / "v.tif", PLAIN) as mask:
        assert not mask.read(1, 0, 5, 50).any()
        with pytest.raises(LabelError, match=r"v.tif: value 9 \(42 pixels\)"):
            mask.read(0, 0, 5, 50)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_palette_that_contradicts_the_table(tmp_path, suffix):
    indices = np.zeros((H, W), np.uint8)
    indices[2:4] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([255, 255, 255, 9, 9, 9, 77, 77, 77])
    image.save(tmp_path / f"m{suffix}")
    with pytest.raises(LabelError) as error:
        read_ids(tmp_path / f"m{suffix}", CODED)
    message = str(error.value)
    assert f"m{suffix}: colour RGB (9, 9, 9) (74 pixels) is not in label table 'coast'" in message
    assert "Index 1 (as a value: class 'rock') of the file's own palette is RGB (9, 9, 9)" in message
    assert "set color_code: false" in message and "77" not in message, (
        "colours that do not occur do not matter"
    )


def test_an_index_outside_the_palette(tmp_path):
    indices = np.zeros((H, W), np.uint8)
    indices[2, :3] = IGNORE
    Image.fromarray(indices).save(tmp_path / "m.png")
    data = (tmp_path / "m.png").read_bytes()  # Pillow keeps indices inside: give a grey file a palette
    header, palette = data[12:25] + b"\3" + data[26:29], b"PLTE" + bytes([255, 255, 255, 128, 128, 128])
    chunks = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, palette)]
    (tmp_path / "m.png").write_bytes(data[:8] + b"".join(chunks) + data[33:])
    with pytest.raises(LabelError, match=r"m.png: index 255 \(3 pixels\) is outside .* palette of 2 colours"):
        read_ids(tmp_path / "m.png", CODED)
    assert np.array_equal(read_ids(tmp_path / "m.png", PLAIN), indices), (
        "values have no palette to be outside of"
    )


def test_greys_that_are_no_colours_of_the_table(tmp_path):
    values = np.zeros((H, W), np.uint8)
    values[2:4] = 1
    Image.fromarray(np.dstack([values] * 3)).save(tmp_path / "m.png")
    with pytest.raises(LabelError, match=r"RGB \(1, 1, 1\) \(74 pixels\).*color_code: false"):
        read_ids(tmp_path / "m.png", CODED)
    Image.fromarray(values * np.uint8(128)).save(tmp_path / "grey.png")
    with pytest.raises(
        LabelError, match=r"value 128 \(74 pixels\).*RGB \(128, 128, 128\) is .* class 'rock'"
    ):
        read_ids(tmp_path / "grey.png", CODED)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (np.full((1, H, W), 0.5, np.float32), "float32 from 0.5 to 0.5; 888 are not, such as 0.5"),
        (np.full((1, H, W), np.inf), None),
        (np.full((1, H, W), -1, np.int16), "int16 from -1 to -1"),
        (np.full((1, H, W), 256, np.uint16), "uint16 from 256 to 256"),
        (np.full((1, H, W), 1j, np.complex64), "complex64"),
        (np.full((3, H, W), 65535, np.uint16), "uint16 from 65535 to 65535"),
        (
            np.zeros((2, H, W), np.uint8),
            "one channel of values or three of colours, and maybe alpha, this one 2",
        ),
        (np.zeros((5, H, W), np.uint8), "this one 5"),
    ],
)
def test_what_is_no_mask(tmp_path, bands, message):
    path = tiff(tmp_path / "m.tif", bands)
    if message is None:  # as for images, what is not finite is no data
        assert (read_ids(path, CODED) == IGNORE).all()
        return
    with pytest.raises(ImageError, match=message):
        read_ids(path, CODED)


def test_lossy_masks(tmp_path):
    values = np.zeros((H, W), np.uint8)
    for name in ("m.jpg", "m.webp"):
        Image.fromarray(np.dstack([values] * 3)).save(tmp_path / name)
    tiff(tmp_path / "m.tif", values[None], compress="jpeg")
    for path in tmp_path.glob("m.*"):
        with pytest.raises(ImageError, match=f"{path.name}: a mask cannot be (JPEG|WEBP)"):
            read_ids(path, PLAIN)


def test_the_largest_page_is_the_mask(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (H, W), np.uint8)
    thumbnail = Image.fromarray(values[::4, ::4])
    thumbnail.save(tmp_path / "m.tif", save_all=True, append_images=[Image.fromarray(values)])
    assert np.array_equal(read_ids(tmp_path / "m.tif", PLAIN), values)


def test_size_has_one_limit(tmp_path, monkeypatch):
    values = np.zeros((H, W), np.uint8)
    paths = []
    for name, image in (
        ("v", Image.fromarray(values)),
        ("c", Image.fromarray(np.dstack([values] * 3))),
        ("p", palette_image(np.dstack([values] * 3))[0]),
    ):
        for suffix in (".png", ".bmp", ".tif"):
            image.save(tmp_path / f"{name}{suffix}")
            paths.append(tmp_path / f"{name}{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)  # Pillow would refuse more than twice as many
    for path in paths:
        assert (read_ids(path, CODED) == IGNORE).all(), path.name
    monkeypatch.setattr(image_io, "MAX_PIXELS", 9)
    for path in paths:
        with pytest.raises(ImageError, match=f"{path.name}: an image of {H}x{W}"):
            read_ids(path, CODED)
        if path.suffix == ".tif":  # by windows there is none
            with open_mask(path, CODED) as mask:
                assert CODED.encode(mask.read(1, 1, H - 1, W - 1), path).size == (H - 1) * (W - 1)


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
