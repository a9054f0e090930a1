"""Archives to test with, and images of every kind to put into them."""

import io
import tarfile
import zipfile

import cv2
import numpy as np
from PIL import Image

from tests.helpers.tiff_files import write_tiff

H, W = 40, 56


def picture(seed=0):
    """Smooth RGB (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3)


def jpeg(seed=0, **options):
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, "jpeg", **options)
    return file.getvalue()


def write_every_kind(folder):
    """Images of all formats, depths, channels and kinds of no-data; returns their paths."""
    rgb, rng = picture(), np.random.default_rng(1)
    image = Image.fromarray(rgb)
    holes = np.dstack([rgb, np.where(rgb[..., 0] > 100, np.uint8(255), np.uint8(0))])
    bands = rgb.transpose(2, 0, 1)
    deep = rng.integers(0, 9000, (4, H, W)).astype(np.uint16)
    lacking = deep.copy()
    lacking[:, :20, :30] = 0
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    image.save(folder / "plain.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.save(folder / "plain.png")
    image.quantize(16).save(folder / "palette.png")
    image.quantize(4).save(folder / "packed.png", bits=2)
    Image.fromarray(holes).save(folder / "alpha.png")
    Image.fromarray(deep[0]).save(folder / "deep.png")
    image.save(folder / "plain.bmp")
    Image.fromarray(holes).save(folder / "alpha.webp", lossless=True)
    write_tiff(folder / "rgb.tif", bands, compress="jpeg", photometric="ycbcr", interleave="pixel", **tiled)
    write_tiff(folder / "one.tif", bands[:1], compress="deflate", **tiled)
    write_tiff(folder / "four.tif", np.concatenate([bands, bands[:1]]), **tiled)
    write_tiff(folder / "four_deep.tif", deep, compress="deflate", predictor=2, **tiled)
    write_tiff(folder / "lacking.tif", lacking, nodata=0, **tiled)
    write_tiff(folder / "masked.tif", bands, mask=holes[..., 3])
    write_tiff(folder / "float.tif", np.where(lacking > 0, lacking / 7.0, np.nan).astype(np.float32)[:3])
    write_tiff(folder / "colors.tif", bands[:1] // 64, colormap={i: (9 * i, 7, i, 255) for i in range(4)})
    return sorted(folder.iterdir())


def write_zip(path, files, method=zipfile.ZIP_STORED):
    """Zip of names and contents."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def write_tar(path, files, layout=tarfile.PAX_FORMAT):
    """Tar of names and contents."""
    with tarfile.open(path, "w", format=layout) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_streamed_zip(path, files, method=zipfile.ZIP_DEFLATED):
    """Zip written to a pipe, whose sizes stand behind the data."""

    class Pipe(io.RawIOBase):
        def __init__(self, file):
            self.file = file

        def writable(self):
            return True

        def write(self, data):
            return self.file.write(data)

    with path.open("wb") as file, zipfile.ZipFile(Pipe(file), "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
