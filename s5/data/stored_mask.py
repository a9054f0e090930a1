"""Masks as stored in their files: values, palette indices or colours, and where there is no data.

Label tables give them a meaning (`s5.data.masks`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from rasterio.enums import ColorInterp, Compression
from rasterio.io import DatasetReader
from rasterio.windows import Window

from s5.data.gdal_files import decoding
from s5.data.image_formats import GREY, PALETTE, png_size, read_palette
from s5.data.rasters import has_mask, nodata_value
from s5.errors import ImageError

Coding = Literal["values", "palette", "colors"]
"""One channel of values, one channel of palette indices, or three channels of RGB colours."""

Number = int | float
RGBA = tuple[int, int, int, int]

_BLOCK_PIXELS = 1 << 22  # pixels read at a time when scanning a mask
_SHOWN = 3  # values or colours in a message


@dataclass(frozen=True)
class MaskHeader:
    """The header of a mask.

    Attributes:
        height: Rows.
        width: Columns.
        coding: How pixels are stored.
        palette: RGB of each index; empty without a palette.
        no_data: Values or indices declared as no-data.
        no_data_color: RGB colour declared as no-data, of a mask in colours.
    """

    height: int
    width: int
    coding: Coding
    palette: tuple[tuple[int, int, int], ...] = ()
    no_data: tuple[Number, ...] = ()
    no_data_color: tuple[Number, ...] | None = None


class Stored(NamedTuple):
    """A window of a mask.

    Attributes:
        pixels: (1, h, w) or (3, h, w), in the type of the file.
        missing: bool (h, w), True where there is no data by alpha, a mask or NaN; None if nowhere. Does not
            include the values declared in the header.
    """

    pixels: np.ndarray
    missing: np.ndarray | None


class StoredMask(Protocol):
    """A mask in a file, read by windows.

    Attributes:
        header: Its header.
    """

    header: MaskHeader

    def read(self, top: int, left: int, height: int, width: int) -> Stored:
        """Read the window at `top`, `left`."""
        ...


class LoadedMask:
    """A decoded mask in memory."""

    def __init__(self, header: MaskHeader, pixels: np.ndarray, missing: np.ndarray | None = None) -> None:
        self.header, self._pixels, self._missing = header, pixels, missing

    def read(self, top: int, left: int, height: int, width: int) -> Stored:
        """The window, as views."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        missing = None if self._missing is None else self._missing[rows, columns]
        return Stored(self._pixels[:, rows, columns], missing)


class DatasetMask:
    """A mask in an open raster, read by windows.

    Raises:
        ImageError: The file is damaged, or does not have one or three bands.
    """

    def __init__(self, dataset: DatasetReader, path: str | Path) -> None:
        self._dataset, self._path = dataset, path
        self.header = mask_header(dataset, path)
        self._bands = [1, 2, 3] if self.header.coding == "colors" else [1]
        alpha = dataset.count in (2, 4)  # mask_header refuses other last bands
        self._alpha = dataset.count if alpha else None
        self._has_mask = has_mask(dataset)
        self._zero = _value_of_white(dataset)

    def read(self, top: int, left: int, height: int, width: int) -> Stored:
        """The window, decoded."""
        window = Window(left, top, width, height)
        with decoding(self._path):
            pixels = self._dataset.read(self._bands, window=window)
            missing = []
            if pixels.dtype.kind in "fc":
                missing.append(~np.isfinite(pixels).any(0))
            if self._alpha is not None:
                missing.append(self._dataset.read(self._alpha, window=window) == 0)
            if self._has_mask:
                missing.append(self._dataset.read_masks(1, window=window) == 0)
        if self._zero is not None:
            pixels = self._zero - pixels
        return Stored(pixels, np.logical_or.reduce(missing) if missing else None)

    def load(self) -> LoadedMask:
        """Read the full mask."""
        return LoadedMask(self.header, *self.read(0, 0, self.header.height, self.header.width))


def mask_header(dataset: DatasetReader, path: str | Path) -> MaskHeader:
    """Read the header of a mask from an open raster.

    Raises:
        ImageError: The file is damaged or lossy, or does not have one or three bands besides alpha.
    """
    with decoding(path):
        kinds, count = dataset.colorinterp, dataset.count
        if dataset.compression == Compression.jpeg:
            raise ImageError(path, "a mask cannot be JPEG: lossy compression changes values", "Use deflate")
        if count not in (1, 3) and not (count in (2, 4) and kinds[-1] == ColorInterp.alpha):
            raise ImageError(
                path,
                f"a mask has one channel of values or three of colours, plus alpha at most; it has {count}",
                "Save only the channel with the classes",
            )
        no_data = _declared(dataset, 3 if count > 2 else 1)
        if count > 2:
            return MaskHeader(dataset.height, dataset.width, "colors", no_data_color=no_data)
        zero = _value_of_white(dataset)
        if zero is not None:
            inverted = tuple(int(zero) - value for value in no_data or ())
            return MaskHeader(dataset.height, dataset.width, "values", no_data=inverted)
        if kinds[0] != ColorInterp.palette:
            return MaskHeader(dataset.height, dataset.width, "values", no_data=no_data or ())
        colors = dataset.colormap(1)
        palette = tuple(colors[i] for i in range(len(colors)))
        return palette_header(dataset.height, dataset.width, palette, no_data or (), dataset.driver != "PNG")


def palette_header(
    height: int,
    width: int,
    palette: tuple[RGBA, ...],
    no_data: tuple[Number, ...] = (),
    made_up: bool = False,
) -> MaskHeader:
    """Create the header of a mask with a palette.

    Args:
        height: Rows.
        width: Columns.
        palette: RGBA of each index.
        no_data: Indices declared as no-data.
        made_up: Whether the palette may exist only because the format requires one.
    """
    coding, colors, transparent = _interpret_palette(palette, made_up)
    return MaskHeader(height, width, coding, colors, tuple(dict.fromkeys((*no_data, *transparent))))


def read_values(stored: StoredMask, path: str | Path) -> np.ndarray:
    """Read a mask of values or indices, uint8 (H, W), without a label table.

    Raises:
        ImageError: The mask is in colours, or has values that are not integers in 0..255.
    """
    require_grey(stored, path)
    pixels, _ = stored.read(0, 0, stored.header.height, stored.header.width)
    return whole_numbers(pixels[0], None, path)


def require_grey(stored: StoredMask, path: str | Path) -> None:
    """Refuse a mask whose three channels differ anywhere.

    Raises:
        ImageError: The channels differ; the message lists some colours.
    """
    if stored.header.coding != "colors":
        return
    for window in row_blocks(stored.header):
        r, g, b = stored.read(*window).pixels
        differ = (r != g) | (g != b)
        if differ.any():
            colors = np.unique(np.stack([r[differ], g[differ], b[differ]], 1), axis=0)
            shown = ", ".join(f"RGB {tuple(color.tolist())}" for color in colors[:_SHOWN])
            more = " and others" if len(colors) > _SHOWN else ""
            raise ImageError(
                path,
                f"a mask of values has one channel, this has 3 that differ (colour-coded?): {shown}{more}",
                "Add a palette to the label table, the colour of each class in the masks (and no color_code: "
                "false)",
            )


def row_blocks(header: MaskHeader) -> Iterator[tuple[int, int, int, int]]:
    """Windows (top, left, height, width) of full rows that cover a mask, each of bounded size."""
    rows = max(1, _BLOCK_PIXELS // max(1, header.width))
    for top in range(0, header.height, rows):
        yield top, 0, min(rows, header.height - top), header.width


def whole_numbers(pixels: np.ndarray, missing: np.ndarray | None, path: str | Path) -> np.ndarray:
    """Convert integers of any type to uint8; 0 where there is no data.

    Args:
        pixels: (h, w), or (3, h, w) colours.
        missing: bool (h, w), where there is no data; None if nowhere.
        path: The file, for the message.

    Raises:
        ImageError: A number is not an integer in 0..255.
    """
    if pixels.dtype == np.uint8:
        return pixels
    good = np.zeros(pixels.shape, bool)
    if pixels.dtype.kind in "biuf":
        good = (pixels >= 0) & (pixels <= 255) & (np.rint(pixels) == pixels)
    counts = np.ones(pixels.shape, bool) if missing is None else np.broadcast_to(~missing, pixels.shape)
    bad = pixels[counts & ~good]
    if bad.size:
        shown = ", ".join(str(value) for value in np.unique(bad)[:_SHOWN].tolist())
        raise ImageError(
            path,
            f"mask values must be whole numbers in 0..255, got {pixels.dtype} from {pixels[counts].min()} to "
            f"{pixels[counts].max()}; {bad.size} are not, such as {shown}",
            "Write 8-bit values, and declare a value for pixels without data as no-data",
        )
    return np.where(good, pixels, 0).astype(np.uint8)


def _declared(dataset: DatasetReader, bands: int) -> tuple[Number, ...] | None:
    """The no-data value of each band; None if a band has none, or none that a pixel can have."""
    found = [nodata_value(dataset.nodatavals[i], np.dtype(dataset.dtypes[i])) for i in range(bands)]
    values = [value.item() for value in found if value is not None]
    return tuple(values) if len(values) == bands else None


def _value_of_white(dataset: DatasetReader) -> np.unsignedinteger | None:
    """Highest value of a TIFF that stores white as 0 (values are subtracted from it), else None."""
    dtype = np.dtype(dataset.dtypes[0])
    if "MINISWHITE" not in dataset.tags(ns="IMAGE_STRUCTURE") or dtype.kind != "u":
        return None
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
    return dtype.type((1 << bits) - 1)


@lru_cache(maxsize=16)  # the masks of a dataset usually share one palette
def _interpret_palette(
    palette: tuple[RGBA, ...], made_up: bool
) -> tuple[Coding, tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """Coding, colours and transparent indices."""
    transparent = tuple(i for i, color in enumerate(palette) if color[3] == 0)
    if _is_grey_scale(palette, made_up):
        return "values", (), transparent
    return "palette", tuple((r, g, b) for r, g, b, _ in palette), transparent


def _is_grey_scale(palette: tuple[RGBA, ...], made_up: bool) -> bool:
    """Whether a palette is only a grey ramp.

    BMP requires a palette, and GDAL adds one to 1-bit TIFFs (`made_up`); Pillow writes a palette of 256 greys
    when it converts from grey.
    """
    steps = len(palette) - 1
    if steps != 255 and not (made_up and steps > 0):
        return False
    return all(color[:3] == (255 * i // steps,) * 3 for i, color in enumerate(palette))


def plain_header(data: bytes, path: str | Path) -> MaskHeader | None:
    """Header of a grey or palette PNG without a no-data value, from its bytes; None for other PNGs."""
    width, height = png_size(data, path)
    if data[25] == PALETTE:
        return palette_header(height, width, read_palette(data))
    if data[24] <= 8 and data[25] == GREY and b"tRNS" not in data[: data.find(b"IDAT")]:
        return MaskHeader(height, width, "values")
    return None
