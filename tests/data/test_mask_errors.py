"""Masks that are refused: files that are none, and pixels that the label table does not have."""

import zlib

import numpy as np
import pytest
from PIL import Image

from s5.data import image_io
from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from s5.data.masks import open_mask, read_ids, read_values
from s5.errors import ImageError, LabelError
from tests.helpers.mask_files import CODED, PLAIN, H, W, palette_image
from tests.helpers.tiff_files import write_tiff


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
    write_tiff(tmp_path / "c.tif", rgb.transpose(2, 0, 1))
    with open_mask(tmp_path / "c.tif", CODED) as mask, pytest.raises(LabelError, match=r"\(42 pixels\)"):
        mask.read(0, 0, 5, 50)
    values = np.zeros((60, 50), np.uint8)
    values[::10, :7] = 9
    write_tiff(tmp_path / "v.tif", values[None])
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
            "one channel of values or three of colours, plus alpha at most; it has 2",
        ),
        (np.zeros((5, H, W), np.uint8), "it has 5"),
    ],
)
def test_what_is_no_mask(tmp_path, bands, message):
    path = write_tiff(tmp_path / "m.tif", bands)
    if message is None:  # as for images, what is not finite is no data
        assert (read_ids(path, CODED) == IGNORE).all()
        return
    with pytest.raises(ImageError, match=message):
        read_ids(path, CODED)


def test_lossy_masks(tmp_path):
    values = np.zeros((H, W), np.uint8)
    for name in ("m.jpg", "m.webp"):
        Image.fromarray(np.dstack([values] * 3)).save(tmp_path / name)
    write_tiff(tmp_path / "m.tif", values[None], compress="jpeg")
    for path in tmp_path.glob("m.*"):
        with pytest.raises(ImageError, match=f"{path.name}: a mask cannot be (JPEG|WEBP)"):
            read_ids(path, PLAIN)


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
