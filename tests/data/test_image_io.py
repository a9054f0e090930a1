"""Reading and writing images: formats, depths, channels, and every kind of broken file."""

import io
import pickle
import struct

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from s5.data.image_io import image_size, read_image, read_mask, write_image, write_mask
from s5.errors import ImageError
from tests.helpers.tiff_files import write_tiff


@pytest.fixture
def rgb():
    """Smooth enough for JPEG to be close, with unequal channels."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_lossless_formats_give_back_the_pixels(tmp_path, rgb, name):
    assert np.array_equal(read_image(save(tmp_path / name, rgb)), rgb)


def test_webp_and_jpeg_equal_pillow(tmp_path, rgb):
    for name, options in (("a.jpg", {"quality": 90}), ("b.jpg", {"progressive": True}), ("a.webp", {})):
        path = save(tmp_path / name, rgb, **options)
        assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB"))), name


def test_channels_and_palette(tmp_path, rgb):
    grey = rgb[..., 0]
    assert np.array_equal(read_image(save(tmp_path / "g.png", grey)), np.repeat(grey[..., None], 3, 2))
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / "rgba.png", rgba)), rgb)
    assert np.array_equal(read_image(save(tmp_path / "rgba.tif", rgba)), rgb)
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(rgb).convert("CMYK")
    cmyk.save(tmp_path / "c.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "c.jpg").astype(int) - rgb).mean() < 4


def test_the_content_decides_not_the_name(tmp_path, rgb):
    save(tmp_path / "a.png", rgb).rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), rgb)


def test_exif_orientation_is_ignored(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = save(tmp_path / "a.jpg", rgb, exif=exif)
    assert read_image(path).shape == rgb.shape
    assert image_size(path) == rgb.shape[:2]


def test_16_bit_is_stretched_between_percentiles(tmp_path):
    values = np.linspace(1000, 3000, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint16)
    values[0, 0] = 65535  # an outlier must not decide
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip(np.rint((values - low) / (high - low) * 255), 0, 255)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 1
    cv2.imwrite(str(tmp_path / "grey.png"), values[..., 0])
    assert read_image(tmp_path / "grey.png").shape == (64, 64, 3)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_geotiff_bands_depths_and_no_data(tmp_path):
    rng = np.random.default_rng(0)
    eight = rng.integers(0, 256, (8, 20, 30), np.uint8)
    assert np.array_equal(read_image(write_tiff(tmp_path / "8.tif", eight)), eight[:3].transpose(1, 2, 0))
    one = read_image(write_tiff(tmp_path / "1.tif", eight[:1]))
    assert np.array_equal(one, np.repeat(eight[0][..., None], 3, 2))
    deep = rng.uniform(0.0, 0.3, (3, 20, 30)).astype(np.float32)
    deep[:, :5] = -9999
    deep[:, 6, 6] = np.nan
    image = read_image(write_tiff(tmp_path / "f.tif", deep, nodata=-9999))
    assert (image[:5] == 0).all() and (image[6, 6] == 0).all()
    assert 100 < image[7:].mean() < 155, "no-data values must not enter the stretch"
    assert image_size(tmp_path / "f.tif") == (20, 30)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_tiffs_of_fewer_than_8_bits_are_as_bright_as_others(tmp_path, bits):
    top = (1 << bits) - 1
    values = np.random.default_rng(0).integers(0, top + 1, (3, 16, 16), dtype=np.uint8)
    values[:, 0, :2] = 0, top
    profile = {"driver": "GTiff", "height": 16, "width": 16, "dtype": "uint8", "nbits": bits}
    with rasterio.open(tmp_path / "a.tif", "w", count=3, **profile) as file:
        file.write(values)
    expected = np.rint(values * (255 / top)).transpose(1, 2, 0)
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)
    with rasterio.open(tmp_path / "a.tif", "w", count=1, nodata=top, **profile) as file:
        file.write(values[:1])
    without = np.where(values[0] == top, 0, expected[..., 0])
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], without), "no-data is 0"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_masks_in_every_packing(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (9, 13), np.uint8)
    Image.fromarray(mask * 255).convert("1").save(tmp_path / "1bit.png")
    assert np.array_equal(read_mask(tmp_path / "1bit.png"), mask)
    values = np.random.default_rng(1).integers(0, 16, (9, 13), np.uint8)
    colored = Image.fromarray(values).convert("P")
    colored.putpalette([255 - i // 3 for i in range(768)])
    colored.save(tmp_path / "palette.png", bits=4)
    assert np.array_equal(read_mask(tmp_path / "palette.png"), values)
    save(tmp_path / "grey.png", values)
    save(tmp_path / "equal.png", np.dstack([values] * 3))
    save(tmp_path / "deep.png", values.astype(np.uint16))
    for name in ("grey.png", "equal.png", "deep.png"):
        assert np.array_equal(read_mask(tmp_path / name), values), name
    write_tiff(tmp_path / "m.tif", values[None])
    assert np.array_equal(read_mask(tmp_path / "m.tif"), values)


def test_4_bit_grey_mask_keeps_its_values(tmp_path):
    # Pillow cannot write 4-bit grey: header and one filter byte before each packed row, by hand.
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytes([0, 0x01, 0x2F, 0, 0x9A, 0x03])
    header = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 1, 2, 15], [9, 10, 0, 3]]


def test_unsuitable_masks_are_refused(tmp_path, rgb):
    with pytest.raises(ImageError, match="a.png.*3 that differ"):
        read_mask(save(tmp_path / "a.png", rgb))
    with pytest.raises(ImageError, match="a.jpg.*lossy"):
        read_mask(save(tmp_path / "a.jpg", rgb[..., 0]))
    with pytest.raises(ImageError, match="d.png.*0 to 300"):
        read_mask(save(tmp_path / "d.png", np.array([[0, 300]], np.uint16)))


@pytest.mark.parametrize("name", ["a.jpg", "p.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_truncated_files_are_errors(tmp_path, rgb, name, kept):
    path = save(tmp_path / name, rgb, **({"progressive": True} if name == "p.jpg" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=name):
        read_image(path)


def test_truncated_jpeg_with_a_whole_preview_is_an_error(tmp_path, rgb):
    preview = io.BytesIO()
    Image.fromarray(rgb[:16, :16]).save(preview, "JPEG")
    exif = b"Exif\0\0" + preview.getvalue()
    path = save(tmp_path / "a.jpg", rgb, exif=exif)
    assert read_image(path).shape == rgb.shape
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(path)


def test_bytes_after_the_end_do_no_harm(tmp_path, rgb):
    for name in ("a.png", "a.jpg"):
        path = save(tmp_path / name, rgb)
        path.write_bytes(path.read_bytes() + b"trailing bytes of some tool")
        assert read_image(path).shape == rgb.shape


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(ImageError, match="nothing.png: file not found"):
        read_image(tmp_path / "nothing.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty.png: is empty"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "page.png").write_text("<html>404</html>")
    with pytest.raises(ImageError, match="page.png: is not an image.*html"):
        read_image(tmp_path / "page.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_mask(tmp_path)


def test_damage_inside_the_data_is_an_error(tmp_path, rgb):
    path = save(tmp_path / "a.png", rgb)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="a.png: cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp"])
def test_image_size_without_decoding(tmp_path, rgb, name):
    path = save(tmp_path / name, rgb)
    path.write_bytes(path.read_bytes()[:-20])  # the header is enough, except for WebP
    assert name == "a.webp" or image_size(path) == (40, 56)


def test_writing(tmp_path, rgb, capfd):
    write_image(tmp_path / "new" / "a.png", rgb)
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), rgb)
    write_image(tmp_path / "a.jpg", rgb, quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - rgb).mean() < 3
    write_mask(tmp_path / "m.png", rgb[..., 0])
    assert np.array_equal(read_mask(tmp_path / "m.png"), rgb[..., 0])
    with pytest.raises(ImageError, match="m.jpg"):
        write_mask(tmp_path / "m.jpg", rgb[..., 0])
    write_image(tmp_path / "a.webp", rgb)
    assert not list(tmp_path.rglob("*.tmp"))
    assert capfd.readouterr().err == "", "OpenCV complains of options that a format does not have"


def test_a_failed_write_leaves_the_old_file(tmp_path, rgb, monkeypatch):
    from pathlib import Path

    write_image(tmp_path / "a.png", rgb)

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(tmp_path / "a.png", rgb // 2)
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is empty", "Do this")))
    assert (error.path, error.reason, error.hint) == ("a.png", "is empty", "Do this")
    assert str(error) == "a.png: is empty. Do this"
    assert str(ImageError("message of a worker")) == "message of a worker"
