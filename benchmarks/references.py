"""Images per second of the unlabeled loader on members of archives and windows, against loose files.

Loose files, members and windows have the same pixels in the same compression, and are loaded in the same
random order. The many GeoTIFFs have two windows each, and half of them are kept open at a time; every round
starts with none, so that no tile is decoded before it is timed. Windows of large JPEGs are there to show why
curation writes these as files.
"""

import argparse
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import rasterio

from benchmarks.sources import JPEG_QUALITY, texture
from benchmarks.timing import device_name, markdown_table
from s5.data import rasters
from s5.data.augmentation import StrongAugmentation
from s5.data.image_io import init_worker
from s5.data.prepare.patches import windows
from s5.data.references import Member, Reference, Window, members
from s5.data.sources import UnlabeledImages, WeakAugmentation
from s5.data.splits import Split, format_line

HEADER = ("images", "loose files/s", "references/s", "ratio")
COMPRESSIONS: dict[str, dict[str, object]] = {
    "JPEG": {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": JPEG_QUALITY},
    "deflate": {"compress": "deflate", "predictor": 2, "photometric": "rgb"},
}


def write_pools(root: Path, scenes: int, tile: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """Write the images in every form.

    Args:
        root: Folder for them.
        scenes: Number of large images, of 4 x 4 tiles.
        tile: Side of a tile in pixels.

    Yields:
        What is compared, the paths of the loose files, and those of the references to the same pixels.
    """
    images = [texture(np.random.default_rng(seed), 4 * tile)[0] for seed in range(scenes)]
    cut = windows(4 * tile, 4 * tile, tile)
    pieces = [np.ascontiguousarray(window.of(image)) for image in images for window in cut]
    (root / "loose").mkdir()
    jpegs = {f"loose/{i}.jpg": _jpeg(piece) for i, piece in enumerate(pieces)}
    _write_archives(root, jpegs)
    for archive in ("pool.tar", "pool.zip"):
        yield f"JPEG, members of {archive}", [*jpegs], list(_of_archive(root, archive))
    large = []
    for number, image in enumerate(images):
        (root / f"large_{number}.jpg").write_bytes(_jpeg(image))
        large += [str(Reference(f"large_{number}.jpg", window=window)) for window in cut]
    yield f"JPEG, windows of {scenes} files (what curation cuts)", [*jpegs], large
    for kind, options in COMPRESSIONS.items():
        loose = [f"loose/{i}_{kind}.tif" for i in range(len(pieces))]
        for name, piece in zip(loose, pieces, strict=True):
            _write_tiff(root / name, piece, tile, options)
        large = list(_write_parts(root / f"large_{kind}", images, cut, 16, options))
        yield f"GeoTIFF ({kind}), windows of {scenes} files", loose, large
        small = list(_write_parts(root / f"small_{kind}", images, cut, 2, options))
        yield f"GeoTIFF ({kind}), windows of {8 * scenes} files", loose, small
        yield f"GeoTIFF ({kind}), windows across nine of its tiles", *_write_across(root, images, tile, kind)


def _write_archives(root: Path, files: dict[str, bytes]) -> None:
    """Write files, and a tar and a zip of them."""
    with tarfile.open(root / "pool.tar", "w") as tar, zipfile.ZipFile(root / "pool.zip", "w") as packed:
        for name, data in files.items():
            (root / name).write_bytes(data)
            tar.add(root / name, name)
            packed.writestr(name, data)


def _write_parts(
    folder: Path, images: Sequence[np.ndarray], cut: Sequence[Window], count: int, options: dict[str, object]
) -> Iterator[str]:
    """Write parts of `count` neighbouring tiles as one file each, and refer to these tiles."""
    folder.mkdir()
    for number, image in enumerate(images):
        for first in range(0, len(cut), count):
            begin, end = cut[first], cut[first + count - 1]
            part = image[begin.top : end.top + end.height, begin.left : end.left + end.width]
            path = folder / f"{number}_{first}.tif"
            _write_tiff(path, part, begin.width, options)
            for window in cut[first : first + count]:
                inside = window._replace(top=window.top - begin.top, left=window.left - begin.left)
                yield str(Reference(str(path), window=inside))


def _write_across(
    root: Path, images: Sequence[np.ndarray], tile: int, kind: str
) -> tuple[list[str], list[str]]:
    """Write images in tiles of half the side, and windows of them that begin in the middle of a tile."""
    loose, inside, options = [], [], COMPRESSIONS[kind]
    for number, image in enumerate(images):
        path = root / f"across_{number}_{kind}.tif"
        _write_tiff(path, image, tile // 2, options)
        for window in windows(image.shape[0] - tile, image.shape[1] - tile, tile):
            window = window._replace(top=window.top + tile // 4, left=window.left + tile // 4)
            inside.append(str(Reference(str(path), window=window)))
            loose.append(f"loose/{number}_{window.top}_{window.left}_{kind}.tif")
            _write_tiff(root / loose[-1], np.ascontiguousarray(window.of(image)), tile // 2, options)
    return loose, inside


def _of_archive(root: Path, archive: str) -> Iterator[str]:
    for member in members(root / archive):
        if isinstance(member, Member):
            yield str(Reference(archive, member.name, (member.at, member.size)))


def _jpeg(image: np.ndarray) -> bytes:
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _write_tiff(path: Path, image: np.ndarray, tile: int, options: dict[str, object]) -> None:
    size = {"height": image.shape[0], "width": image.shape[1], "count": 3, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": tile, "blockysize": tile, "interleave": "pixel"}
    with rasterio.open(path, "w", "GTiff", **size, **tiles, **options) as file:
        file.write(image.transpose(2, 0, 1))


def compare(root: Path, loose: list[str], inside: list[str], crop: int, repeats: int) -> list[float]:
    """Images per second of loose files and references, and their ratio: medians of interleaved rounds."""
    pools = [
        UnlabeledImages(
            Split.from_lines([format_line(name) for name in names], root, root),
            WeakAugmentation(crop),
            StrongAugmentation(),
        )
        for names in (loose, inside)
    ]
    rng = np.random.default_rng(0)
    rounds = []
    for number in range(repeats + 1):
        rasters.OPEN.clear()
        order, seconds = rng.permutation(len(loose)).tolist(), [0.0, 0.0]
        for position, index in enumerate(order):
            for which in (0, 1) if (position + number) % 2 else (1, 0):
                start = time.process_time()
                item = pools[which].load(index, np.random.default_rng(position))
                seconds[which] += time.process_time() - start
                if item["skipped"]:
                    raise RuntimeError(f"unreadable: {item['skipped']}")
        rounds.append(seconds)
    timed = rounds[1:]
    rates = [len(loose) / statistics.median(times[which] for times in timed) for which in (0, 1)]
    return [*rates, statistics.median(first / second for first, second in timed)]


def run(args: argparse.Namespace) -> str:
    """Measure all forms; returns the table."""
    init_worker()
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, loose, inside in write_pools(root, args.scenes, args.tile):
            rows.append((name, *compare(root, loose, inside, args.tile, args.repeats)))
    title = f"Unlabeled loader, images/s on one core, {args.tile}² pixels. Device: CPU, {device_name('cpu')}."
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--scenes", type=int, default=8, help="large GeoTIFFs, of 4 x 4 tiles")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile, a loose file and a crop")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.references", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median is reported")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
