"""Time and peak memory of the steps of curation that handle all patches at once, on synthetic shards.

`--only` selects a part; each size is measured in a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.timing import device_name, markdown_table
from s5.command import usable_cpus
from s5.compat.memory import peak_memory
from s5.curate import require
from s5.curate.config import PatchConfig
from s5.curate.folder import Part
from s5.curate.index import index
from s5.curate.select import SelectSettings, select
from s5.data.image_io import write_image
from s5.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

SHARD = 50_000  # patches
LINKS = 20_000  # to one file; file systems have limits
CLUSTERS, CLASSES = 64, 16
DUPLICATES = 0.02  # share of patches that copy the hash of another with up to 2 bits changed
SIDE, PER_IMAGE = 512, 16  # pixels of a window, windows of an image (4 x 4)
PER_SOURCE = 5000  # images of a source before those of the next
SOURCES = ("million_aid", "samrs", "star")
HEADER = ("patches", "chosen", "seconds", "CPU seconds", "patches/s", "peak memory, GB")


def run(args: argparse.Namespace) -> str:
    """Measure all parts; returns their tables, or which package is missing."""
    try:
        return "\n\n".join(part(args) for part in PARTS.values())
    except ConfigError as error:
        return f"curation: not measured. {error}"


def run_select(args: argparse.Namespace) -> str:
    """Selecting a tenth of the patches, for every size."""
    rows = []
    for size in args.patches:
        with tempfile.TemporaryDirectory(prefix="s5_curation.") as folder:
            write_shards(Path(folder), size)
            figures = _measure_apart(folder, size // 10)
        rate = size / figures["seconds"]
        rows.append(
            (size, size // 10, figures["seconds"], figures["cpu_seconds"], rate, figures["bytes"] / 1e9)
        )
    title = (
        f"Selecting from {CLUSTERS} clusters, near-duplicates up to 2 bits apart ({DUPLICATES:.0%} planted). "
        f"Device: {device_name('cpu')}, threads: {usable_cpus()}."
    )
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def run_index(args: argparse.Namespace) -> str:
    """Indexing JPEGs of 256 pixels in folders of a thousand, by one process."""
    rows = []
    for size in args.files:
        with tempfile.TemporaryDirectory(prefix="s5_curation.") as folder:
            write_images(Path(folder), size)
            figures = _measure_apart(folder, 0)
        seconds = figures["seconds"]
        rows.append((size, seconds, figures["cpu_seconds"], size / seconds, figures["bytes"] / 1e9))
    head = ("images", "seconds", "CPU seconds", "images/s", "peak memory, GB")
    return f"Indexing. Device: {device_name('cpu')}, one process.\n\n{markdown_table(head, rows)}"


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {"select": run_select, "index": run_index}


def write_images(root: Path, images: int) -> None:
    """Write hard links to a few JPEGs, which are files of their own for an index."""
    rng = np.random.default_rng(0)
    links = -(-images // LINKS)
    for i in range(links):
        write_image(root / f"originals/{i:04d}.jpg", rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
    for i in range(images):
        folder = root / f"pool/{i // 1000:05d}"
        if i % 1000 == 0:
            folder.mkdir(parents=True)
        os.link(root / f"originals/{i % links:04d}.jpg", folder / f"image_{i:08d}.jpg")


def measure_index(root: Path) -> dict[str, float]:
    """Index in this process: seconds, CPU seconds and peak memory in bytes."""
    start, cpu = time.perf_counter(), _cpu_seconds()
    index(Part(root / "out"), {"pool": Path("pool")}, root, PatchConfig(size=256), workers=1)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - cpu,
        "bytes": peak_memory(torch.device("cpu")),
    }


def write_shards(run: Path, patches: int) -> None:
    """Write synthetic score and cluster shards without features, one at a time."""
    parquet = require("pyarrow.parquet")
    for step in ("scores", "clusters"):
        (run / step).mkdir(parents=True)
    for i, first in enumerate(range(0, patches, SHARD)):
        rng = np.random.default_rng(i)
        numbers = np.arange(first, min(first + SHARD, patches))
        for step, table in (("scores", _scores(numbers, rng)), ("clusters", _clusters(numbers, rng))):
            parquet.write_table(table, run / step / f"{i:06d}.parquet", compression="zstd")


def _scores(patch: np.ndarray, rng: np.random.Generator) -> "pyarrow.Table":
    pa, compute = require("pyarrow"), require("pyarrow.compute")
    count = len(patch)
    image = patch // PER_IMAGE
    source = pa.array(np.array(SOURCES)[image // PER_SOURCE % len(SOURCES)])
    left, top = (np.int32(SIDE) * (patch // step % 4).astype(np.int32) for step in (1, 4))
    number, x, y = (pa.array(values).cast(pa.string()) for values in (image, left, top))
    number = compute.utf8_lpad(number, 10, "0")
    fragment = compute.binary_join_element_wise(x, y, str(SIDE), str(SIDE), ",")
    name = compute.binary_join_element_wise(source, "/images/scene_", number, ".tif#xywh=", fragment, "")
    unreadable = rng.random(count) < 0.001
    pixels = (rng.dirichlet(np.full(CLASSES, 0.2), count) * SIDE**2).astype(np.int32)
    return pa.table(
        {
            "patch": patch,
            "key": rng.integers(0, 2**64, count, dtype=np.uint64),
            "source": source,
            "name": name,
            "left": left,
            "top": top,
            "width": np.full(count, SIDE, np.int32),
            "height": np.full(count, SIDE, np.int32),
            "valid": np.where(rng.random(count) < 0.01, 0.2, 1).astype(np.float32),
            "deviation": np.where(rng.random(count) < 0.005, 0.5, 40).astype(np.float32),
            "sharpness": rng.uniform(0.2, 2, count).astype(np.float32),
            "phash": pa.array(_hashes(count, rng), mask=unreadable),
            "entropy": pa.array(rng.gamma(2, 0.15, count).astype(np.float32), mask=unreadable),
            "classes": pa.FixedSizeListArray.from_arrays(pixels.ravel(), CLASSES).cast(pa.list_(pa.int32())),
            "error": pa.array(np.where(unreadable, "image file is truncated", None), pa.string()),
        }
    )


def _clusters(patch: np.ndarray, rng: np.random.Generator) -> "pyarrow.Table":
    pa = require("pyarrow")
    cluster = np.minimum(rng.zipf(1.5, len(patch)), CLUSTERS).astype(np.int32) - np.int32(1)
    similarity = rng.random(len(patch), np.float32)
    return pa.table({"patch": patch, "cluster": cluster, "similarity": similarity})


def _hashes(count: int, rng: np.random.Generator) -> np.ndarray:
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = rng.choice(count, int(count * DUPLICATES), replace=False)
    changed = hashes[rng.integers(0, count, len(copies))]
    for _ in range(2):
        bits = np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
        changed ^= np.where(rng.random(len(copies)) < 0.5, bits, np.uint64(0))
    hashes[copies] = changed
    return hashes


def measure_select(run: Path, count: int) -> dict[str, float]:
    """Select in this process: seconds, CPU seconds and peak memory in bytes."""
    start, cpu = time.perf_counter(), _cpu_seconds()
    labeled = [1000 // (cluster + 1) for cluster in range(CLUSTERS)]
    result = select(run, labeled, SelectSettings(count=count))
    assert result.reasons["chosen"] == count
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - cpu,
        "bytes": peak_memory(torch.device("cpu")),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _measure_apart(folder: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.curation", "--measure", folder, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    sizes = [1_000_000, 3_000_000, 10_000_000]
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_000_000], help="images to index")
    parser.add_argument("--patches", type=int, nargs="+", default=sizes, help="patches to select from")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables; with `--measure` the figures of one row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curation", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--only", choices=PARTS, help="part to measure (default: all)")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        folder, count = args.measure
        folder, count = Path(folder), int(count)
        print(json.dumps(measure_select(folder, count) if count else measure_index(folder)))
    else:
        print(PARTS[args.only](args) if args.only else run(args))


if __name__ == "__main__":
    main()
