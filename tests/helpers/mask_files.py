"""Masks to test with: two label tables, and one picture in every format that can hold it."""

import numpy as np
from PIL import Image

from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from tests.helpers.tiff_files import write_tiff

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


def picture(ids):
    return COLORS[np.where(ids == IGNORE, 4, ids)]


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
    write_tiff(
        folder / "palette16.tif", indices[None].astype(np.uint16), photometric="palette", colormap=colormap
    )
    write_tiff(folder / "float.tif", rgb.transpose(2, 0, 1).astype(np.float32))
    return sorted(folder.glob("*.*"))
