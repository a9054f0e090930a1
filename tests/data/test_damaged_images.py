"""Whatever is wrong with an image file, reading it gives pixels or an ImageError that names it."""

import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from s5.data import gdal_files, rasters
from s5.data.datasets.shipped import Source
from s5.data.image_formats import is_plain_rgb
from s5.data.image_io import image_size, read_file, read_image, read_image_with_valid, read_mask
from s5.data.prepare.__main__ import main
from s5.data.prepare.own_data import ImageCutter
from s5.data.prepare.patches import plain_file
from s5.data.splits import Split
from s5.errors import ImageError
from tests.helpers.tiff_files import write_tiff

HEIGHT, WIDTH = 36, 44
READERS = (read_image_with_valid, read_mask, image_size, plain_file, gdal_files.read_georeference)


def samples(folder):
    """Files of every format, in several ways of coding."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image, alpha = Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, rgb[..., 0]]))
    few = image.quantize(4)
    for name in ("a.jpg", "a.png", "a.bmp", "a.webp"):
        image.save(folder / name)
    image.save(folder / "progressive.jpg", progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    alpha.save(folder / "alpha.png")
    alpha.save(folder / "alpha.webp", lossless=True)
    few.save(folder / "palette.png", bits=2)
    few.save(folder / "palette.bmp")
    cv2.imwrite(str(folder / "deep.png"), rgb.astype(np.uint16) * 257)
    image.save(folder / "jpeg.tif", compression="jpeg")
    image.convert("1").save(folder / "fax.tif", compression="group4")
    image.crop((0, 0, 9, 8)).save(folder / "pages.tif", save_all=True, append_images=[image])
    bands = rgb.transpose(2, 0, 1)
    write_tiff(folder / "many.tif", np.tile(bands, (5, 1, 1)).astype(np.uint16), compress="lzw")
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    write_tiff(folder / "float.tif", bands.astype(np.float32), compress="deflate", predictor=3, **tiles)
    write_tiff(folder / "complex.tif", bands[:1].astype(np.complex64))
    return sorted(folder.iterdir())


def damaged(data, rng):
    """The content of a file, cut off, with changed bytes, or with a part taken out."""
    changed = bytearray(data)
    kind = rng.integers(4)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        begin = int(rng.integers(len(data)))
        del changed[begin : begin + int(rng.integers(1, 40))]
        return bytes(changed)
    within = len(data) if kind == 2 else min(len(data), 160)  # the header
    for place in rng.integers(within, size=4):
        changed[place] = rng.integers(256)
    return bytes(changed)


def test_only_image_errors_come_out(tmp_path):
    (tmp_path / "whole").mkdir()
    rng = np.random.default_rng(5)
    cut = ImageCutter(tmp_path / "out", "unlabeled/u", size=64)
    counts = {"read": 0, "refused": 0}
    for whole in samples(tmp_path / "whole"):
        for _ in range(5):
            path = tmp_path / f"x{whole.suffix}"
            path.write_bytes(damaged(whole.read_bytes(), rng))
            for read in (*READERS, lambda path: cut(Source("x", "all", "x", path))):
                try:
                    read(path)
                    counts["read"] += 1
                except ImageError as error:
                    assert str(path) in str(error)
                    counts["refused"] += 1
    assert min(counts.values()) > 100, "both are tried"


def test_the_pool_is_prepared_whatever_is_in_it(tmp_path, capsys):
    src = tmp_path / "src"
    src.mkdir()
    rng = np.random.default_rng(6)
    paths = samples(src)
    for path in paths[::2]:
        (src / f"damaged {path.name}").write_bytes(damaged(path.read_bytes(), rng))
    (src / "empty.tif").touch()
    (src / "folder.png").mkdir()
    (src / "nothing.jpg").symlink_to(src / "gone.jpg")
    assert main(["unlabeled", "--src", str(src), "--out", str(tmp_path), "--name", "u"]) == 0
    listed = Split("splits/unlabeled/u.txt", tmp_path)
    names = {sample.name.rsplit("/")[-1].partition("-")[0].partition(".")[0] for sample in listed}
    assert {path.stem for path in paths} <= names, "all whole ones"
    assert all(read_image(sample.image).shape[2] == 3 for sample in listed)
    unusable = (tmp_path / "unlabeled/u/unusable.txt").read_text()
    assert "empty.tif: is empty" in unusable and "nothing.jpg: file not found" in unusable
    assert "source files could not be used, the first:" in capsys.readouterr().out


def test_a_tiff_that_is_cut_off_is_reported_once(tmp_path, capsys, caplog):
    """And what GDAL says on the way to the error is not logged besides."""
    caplog.set_level(logging.INFO)
    src = tmp_path / "src"
    src.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 300, 300), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": 300, "width": 300, "dtype": "uint8"}
    with rasterio.open(src / "whole.tif", "w", **profile) as file:
        file.write(pixels)
    data = (src / "whole.tif").read_bytes()
    for length in (4, 200, len(data) // 2):
        (src / f"cut_{length}.tif").write_bytes(data[:length])
        with pytest.raises(ImageError, match="damaged or unsupported"):
            read_image(src / f"cut_{length}.tif")
    assert not caplog.records
    assert main(["unlabeled", "--src", str(src), "--out", str(tmp_path), "--name", "u"]) == 0
    assert "cut_200.tif" in (tmp_path / "unlabeled/u/unusable.txt").read_text()
    printed = capsys.readouterr()
    assert "GDAL signalled" not in printed.out + printed.err + caplog.text
    assert "err_no" not in printed.out + printed.err + caplog.text


def png(width, height, chunks):
    """A PNG of some chunks after the header, with right check sums."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def test_sizes_that_a_damaged_png_claims_are_not_allocated(tmp_path, monkeypatch):
    def decode(*args):
        raise AssertionError("got to the decoder")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr("s5.data.image_io.decode_png", decode)
    pixels = (b"IDAT", zlib.compress(bytes(50 * 151)))
    (tmp_path / "size.png").write_bytes(png(30_000, 30_000, [pixels]))
    chunk = bytearray(png(50, 50, [pixels]))
    chunk[33:37] = b"\x7f\xff\xff\xff"  # the length of IDAT
    (tmp_path / "chunk.png").write_bytes(chunk)
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82")
    for path in tmp_path.iterdir():
        with pytest.raises(ImageError, match=f"{path.name}: truncated PNG"):
            read_image(path)


def claim_rows(path, rows):
    """Change the height in the directory of a little-endian TIFF."""
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[directory : directory + 2])
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        if data[at : at + 2] == b"\x01\x01":  # ImageLength
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, rows)
    path.write_bytes(data)


def test_a_tiff_that_claims_billions_of_rows_or_is_cut_off_is_found_when_it_is_opened(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(src / "rows.tif")
    claim_rows(src / "rows.tif", 2**31 - 1)
    write_tiff(src / "cut.tif", np.ones((3, 300, 50), np.uint8), blockysize=1)
    (src / "cut.tif").write_bytes((src / "cut.tif").read_bytes()[:-2000])
    Image.new("RGB", (50, 40)).save(src / "a.png")
    for name in ("rows", "cut"):
        for read in (image_size, lambda path: rasters.open_raster(path).__enter__()):
            with pytest.raises(ImageError, match=f"{name}.tif: damaged"):
                read(src / f"{name}.tif")
    assert main(["unlabeled", "--src", str(src), "--out", str(tmp_path), "--name", "u", "--size", "32"]) == 0
    assert len(Split("splits/unlabeled/u.txt", tmp_path)) == 4, "nothing of the upper part of cut.tif"


def test_what_is_decoded_whole_has_one_limit(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", np.ones((1, 200, 300), np.uint8))
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr("s5.data.image_io.MAX_PIXELS", 50_000)
    for name in ("a.png", "a.tif"):
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match=f"{name}: an image of 200x300 .*exceeds the limit of 50000"):
                read(tmp_path / name)
    with rasters.open_raster(tmp_path / "a.tif") as raster:
        assert raster.read(0, 0, 5, 5).shape == (5, 5, 3), "by windows there is none"


def test_an_image_above_pillows_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are an error there
    write = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(write).save(tmp_path / "a.png")
    Image.fromarray(write).save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        assert image_size(tmp_path / name) == (40, 50)
        assert plain_file(tmp_path / name)[0] == name[1:]
        cut = ImageCutter(tmp_path / "out", "unlabeled/u", size=64)
        (patch,) = cut(Source(name, "all", "x", tmp_path / name)).patches
        assert (tmp_path / "out" / patch.image).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory"), SystemError("NULL")])
def test_whatever_is_raised_concerns_this_image(tmp_path, monkeypatch, error):
    write_tiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    Image.new("RGBA", (9, 9)).save(tmp_path / "a.webp", lossless=True)
    Image.new("L", (9, 9)).save(tmp_path / "a.png")

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(rasters.Raster, "_as_rgb", fail)
    monkeypatch.setattr("s5.data.image_io._blanked", fail)
    for name in ("a.tif", "a.webp", "a.png"):
        reason = "not enough memory" if isinstance(error, MemoryError) else str(error)
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            read_image(tmp_path / name)


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(ImageError, match=r"a.*b.png: is not a valid path \(embedded null byte\)"):
        read_image(f"{tmp_path}/a\0b.png")


def test_which_files_are_copied_as_they_are(tmp_path):
    samples(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "grey.jpg")
    notes = {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(90_000)}
    Image.new("RGB", (9, 9)).save(tmp_path / "exif.jpg", **notes)
    plain = {path.name for path in tmp_path.iterdir() if plain_file(path) is not None}
    assert plain == {"a.jpg", "a.png", "progressive.jpg", "exif.jpg"}
    assert not is_plain_rgb(*reversed(read_file(tmp_path / "a.webp")))
