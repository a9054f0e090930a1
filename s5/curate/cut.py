"""Write the chosen windows that are slow to read as images of their own.

Training reads its images in random order. A window of a JPEG or PNG then costs the decoding of the whole
image each time, one of a striped TIFF that of full rows. Here every image is decoded once for all of its
windows.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from s5.command import Progress, usable_cpus
from s5.curate.folder import (
    POOL,
    Part,
    Run,
    begin,
    complete,
    counts_of,
    index_shard_size,
    read_shard,
    settings_of,
)
from s5.curate.reading import PatchReader
from s5.data.gdal_files import tile_shape
from s5.data.image_io import write_image
from s5.data.prepare.pipeline import run_parallel
from s5.data.references import Window
from s5.training.config import Section

logger = logging.getLogger(__name__)

FOLDER = "patches"
SUFFIXES = (".jpg", ".png")
MOST_DECODED = 2.5
"""Pixels of a TIFF that are decoded for each pixel of a window, above which reading it counts as slow.

Any window of 512 pixels in tiles of 256 stays below it, and takes at most 1.1 times as long as a file of its
own (docs/benchmarks.md)."""


class WriteConfig(Section):
    """Files of the result.

    Attributes:
        cut: `slow` writes the chosen windows that are slow to read as images, in the folder `patches`; `none`
            leaves all windows where they are.
        format: `jpg` (quality 95) or `png` (lossless, and slower to read), of these images. Windows partly
            without data are always PNG, transparent there.
    """

    cut: Literal["slow", "none"] = "slow"
    format: Literal["jpg", "png"] = "jpg"


def cut_slow_windows(cfg: WriteConfig, run: Run, root: Path, chosen: Iterator[int], total: int) -> int:
    """Write the slow windows among the chosen patches; those that are there already are kept.

    Images of an earlier choice are deleted.

    Args:
        cfg: Configuration.
        run: The run, whose select step is complete.
        root: Data root.
        chosen: Numbers of the chosen patches, ascending.
        total: How many they are.

    Returns:
        Number of windows that are files now, see `cut_patch`.

    Raises:
        ImageError: An image cannot be read, or has changed since it was indexed.
    """
    pool = run.part(POOL)
    folder, state = pool.path / FOLDER, pool.state(FOLDER)
    settings = {"index": counts_of(pool.state("index"), "index")["digest"], "format": cfg.format}
    # Without its state, what is there may be left from a deletion that was killed.
    if cfg.cut == "none" or not state.exists() or settings_of(state) != settings:
        shutil.rmtree(folder, ignore_errors=True)
    if cfg.cut == "none":
        return 0
    begin(state, settings, "patches")
    size = index_shard_size(pool)
    shards = ((shard, list(patches)) for shard, patches in groupby(chosen, lambda patch: patch // size))
    work, visited, counts = partial(_cut_shard, pool, root, cfg.format), set(), {"files": 0, "bytes": 0}
    with Progress(total, "write", "patches", logger) as progress:
        for (shard, patches), sizes in run_parallel(work, shards, usable_cpus()):
            visited.add(_folder(pool, shard))
            counts["files"] += len(sizes)
            counts["bytes"] += sum(sizes)
            progress.update(len(patches))
    for stale in set(folder.glob("[0-9]*")) - visited:
        shutil.rmtree(stale)
    complete(state, counts)
    if counts["files"]:
        message = "write: %d of %d patches are windows that are slow to read: written as files, %.0f MB"
        logger.info(message, counts["files"], total, counts["bytes"] / 1e6)
    return counts["files"]


def cut_patch(pool: Part, patch: int, shard: int) -> Path | None:
    """The image that was written for a patch; None if it is read where it is."""
    stem = _folder(pool, shard) / f"{patch:09d}"
    return next((path for suffix in SUFFIXES if (path := stem.with_suffix(suffix)).exists()), None)


def _folder(pool: Part, shard: int) -> Path:
    return pool.path / FOLDER / f"{shard:06d}"


def _cut_shard(pool: Part, root: Path, suffix: str, item: tuple[int, Sequence[int]]) -> list[int]:
    """Write the slow windows among patches of a shard, and delete other images; returns sizes in bytes."""
    shard, patches = item
    rows = read_shard(pool.shard("index", shard)).to_pylist()
    first = rows[0]["patch"]
    reader, written = PatchReader(pool, root), []
    for file, of_file in groupby((rows[patch - first] for patch in patches), lambda row: row["file"]):
        windows = [row for row in of_file if row["name"] != file]
        tile = tile_shape(root / file) if windows else None
        for row in windows:
            window = Window(row["top"], row["left"], row["height"], row["width"])
            if tile is not None and _decoded_per_pixel(window, tile) <= MOST_DECODED:
                continue
            path = cut_patch(pool, row["patch"], shard)
            if path is None:
                pixels, valid = reader.read(row)
                name = f"{row['patch']:09d}.{suffix if valid is None else 'png'}"
                path = _folder(pool, shard) / name
                write_image(path, pixels, valid=valid)
            written.append(path)
    for path in set(_folder(pool, shard).glob("*")) - set(written):
        path.unlink()
    return [path.stat().st_size for path in written]


def _decoded_per_pixel(window: Window, tile: tuple[int, int]) -> float:
    """Pixels of the tiles that a window lies in, per pixel of the window."""
    rows = -(-(window.top + window.height) // tile[0]) - window.top // tile[0]
    columns = -(-(window.left + window.width) // tile[1]) - window.left // tile[1]
    return rows * tile[0] * columns * tile[1] / (window.height * window.width)
