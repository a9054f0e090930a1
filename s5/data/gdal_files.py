"""Open TIFFs, and PNGs and BMPs from their bytes, with GDAL (rasterio); errors, pages and georeferencing."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile
from rasterio.rpc import RPC
from rasterio.windows import Window

from s5.data.image_formats import detect_format, is_tiff
from s5.data.references import find, for_gdal
from s5.errors import ImageError, is_utf8

logger = logging.getLogger(__name__)

# For the whole process, because a filter around every call is not thread-safe. Plain TIFFs and PNGs have no
# map coordinates, which is fine here.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# rasterio logs GDAL's messages before an error at level INFO; the exception, and so our ImageError, has the
# text anyway. GDAL's warnings are still logged.
logging.getLogger("rasterio").setLevel(logging.WARNING)

_CACHE_BYTES = 256 << 20  # holds the strips of a row of windows, so that each is decoded once
# Sidecar files (.aux.xml, .msk, .tfw) are tried by name: GDAL would otherwise list the folder, which may have
# a million files, for every image.
OPTIONS = {"GDAL_CACHEMAX": _CACHE_BYTES, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
_DRIVERS = {"bmp": "BMP", "png": "PNG", "tiff": "GTiff"}
_PAGE = re.compile(r"\((\d+)P x (\d+)L")  # size of a page in GDAL's description
_RESTORE = "Restore it from its source"


class Georeference(NamedTuple):
    """Georeferencing of an image.

    Attributes:
        crs: Coordinate reference system; None if the file does not name it.
        transform: Affine transform from columns and rows to map coordinates; None if there are only ground
            control points or RPCs.
        gcps: Ground control points, in `crs`, of an image without a transform.
        rpcs: Rational polynomial coefficients, from longitude, latitude and height to pixels (a camera
            model).
    """

    crs: CRS | None
    transform: Affine | None
    gcps: tuple[GroundControlPoint, ...] = ()
    rpcs: RPC | None = None

    def profile(self) -> dict[str, Any]:
        """Arguments of `rasterio.open` for writing an image of the same size at the same location."""
        values = {"crs": self.crs, "transform": self.transform, "gcps": self.gcps, "rpcs": self.rpcs}
        return {name: value for name, value in values.items() if value}


def size(path: str | Path) -> tuple[int, int]:
    """Height and width of a TIFF.

    Raises:
        ImageError: The file is missing, damaged or cut off.
    """
    with open_dataset(path) as dataset, decoding(path):
        read_last_pixel(dataset)
        return int(dataset.height), int(dataset.width)


def tile_shape(path: str | Path) -> tuple[int, int] | None:
    """Height and width of the tiles or strips of a TIFF; None for an image that is always decoded in full.

    Raises:
        ImageError: The TIFF is missing or damaged.
    """
    if not is_tiff(path) or isinstance(for_gdal(path), bytes):  # a compressed member is unpacked every time
        return None
    with open_dataset(path) as dataset:
        return dataset.block_shapes[0]


def read_georeference(path: str | Path) -> Georeference | None:
    """Georeferencing of a TIFF, from the file or its sidecar files (.tfw, .aux.xml, _RPC.TXT), or None.

    That of a window of an image is in pixels of the window.

    Raises:
        ImageError: The file is missing or damaged.
    """
    reference = find(path)
    window = None if reference is None else reference.window
    left, top = (0, 0) if window is None else (window.left, window.top)
    with open_dataset(path) as dataset, decoding(path):
        rpcs = dataset.rpcs
        if rpcs:
            rpcs.line_off, rpcs.samp_off = rpcs.line_off - top, rpcs.samp_off - left
        if not dataset.transform.is_identity:  # rasterio returns the identity if there is no transform
            transform = dataset.window_transform(Window(left, top, 1, 1)) if window else dataset.transform
            return Georeference(dataset.crs, transform, rpcs=rpcs)
        gcps, crs = dataset.gcps
        for point in gcps:
            point.row, point.col = point.row - top, point.col - left
        if gcps or rpcs:
            return Georeference(crs or dataset.crs, None, tuple(gcps), rpcs)
        return None


@contextmanager
def open_dataset(source: str | Path | bytes, path: str | Path | None = None) -> Iterator[DatasetReader]:
    """Open a TIFF (the largest of its pages), or a PNG or BMP from its bytes, as a rasterio dataset.

    Raises:
        ImageError: The file is missing or damaged, or GDAL cannot open a file with its name.
    """
    with open_noted(source, path or str(source)) as (dataset, _):
        yield dataset


@contextmanager
def open_noted(source: str | Path | bytes, path: str | Path) -> Iterator[tuple[DatasetReader, str]]:
    """Open a dataset; yields it and a note about its pages."""
    with rasterio.Env(**OPTIONS), ExitStack() as opened:
        with decoding(path):
            source = source if isinstance(source, bytes) else for_gdal(source)
        yield enter_dataset(source, path, opened)


def enter_dataset(
    source: str | Path | bytes, path: str | Path, opened: ExitStack
) -> tuple[DatasetReader, str]:
    """Open a dataset that `opened` closes, within `rasterio.Env(**OPTIONS)`.

    Args:
        source: What `s5.data.references.for_gdal` returned, or bytes.
        path: The file, for messages.
        opened: Closes it.

    Returns:
        The dataset, and a note about its pages; may be empty.
    """
    note = ""
    with decoding(path):  # not around the caller's own errors
        if isinstance(source, bytes):
            driver = _DRIVERS[detect_format(source) or "png"]
            dataset = opened.enter_context(opened.enter_context(MemoryFile(source)).open(driver=driver))
        else:
            _require_utf8(source)
            dataset = opened.enter_context(rasterio.open(source, driver="GTiff"))
        if dataset.driver == "GTiff":
            page, note = _largest_page(dataset)
            if page is not None:
                dataset = opened.enter_context(rasterio.open(page, driver="GTiff"))
    if note:
        _warn_once(f"{path}: {note}")
    return dataset, note


@contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Convert any exception of a decoder to an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        hint = "Use fewer workers, or divide the image"
        raise ImageError(path, "there is not enough memory to decode it", hint) from error
    except Exception as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise ImageError(path, f"damaged or unsupported ({reason})", _RESTORE) from error


def read_last_pixel(dataset: DatasetReader) -> None:
    """Detect early that a TIFF is truncated, or that a damaged header claims billions of rows."""
    dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))


def _require_utf8(path: str | Path) -> None:
    if not is_utf8(path):
        hint = "Rename the file (convmv -r -f gbk -t utf8 --notest FOLDER, with the encoding that it has)"
        raise ImageError(path, "TIFFs whose path is not UTF-8 cannot be opened by GDAL", hint)


def _largest_page(dataset: DatasetReader) -> tuple[str | None, str]:
    """GDAL's name of the page with the most pixels (the first of equal ones), and a note about it.

    The name is None for the page that is already open; the note is empty for a single page.
    """
    pages = dataset.subdatasets
    if len(pages) < 2:
        return None, ""
    about = dataset.tags(ns="SUBDATASETS")
    sizes = []
    for number in range(1, len(pages) + 1):
        found = _PAGE.search(about.get(f"SUBDATASET_{number}_DESC", ""))
        sizes.append((int(found[2]), int(found[1])) if found else (0, 0))
    best = max(range(len(pages)), key=lambda i: sizes[i][0] * sizes[i][1])
    height, width = sizes[best]
    return pages[best] if best else None, (
        f"of {len(pages)} pages, only the largest is read: page {best + 1}, {height}x{width} (height x "
        "width). If the others are bands or more images, save them as bands of one page or as separate files"
    )


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
