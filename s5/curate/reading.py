"""Read the patches of index shards in batches, with facts of their pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from s5.curate import require
from s5.curate.folder import Part, index_folders, read_shard
from s5.data.image_formats import is_tiff
from s5.data.image_io import init_worker, read_image_with_valid
from s5.data.prepare.patches import Decoded
from s5.data.references import parse
from s5.data.worker_pool import Loader
from s5.errors import ImageError

PREFETCH = 4  # batches per worker
HASH_SIDE = 8  # of the perceptual hash: 64 bits


@dataclass
class Batch:
    """Patches of one size.

    Attributes:
        shard: Number of their shard.
        rows: Their rows in it.
        images: (B, 3, H, W) uint8.
        valid: Bool (B, H, W).
        facts: `valid`, `deviation`, `sharpness`, `phash` of each patch.
        errors: Reason by row, for the patches that cannot be read, which are not in the others.
        last: Whether it is the last batch of its shard.
    """

    shard: int
    rows: list[int]
    images: Tensor
    valid: Tensor
    facts: list[tuple[float, float, float, int]]
    errors: dict[int, str] = field(default_factory=dict)
    last: bool = False

    def pin_memory(self) -> "Batch":
        """Pin the tensors; the loader calls this for batches of its own types."""
        self.images, self.valid = self.images.pin_memory(), self.valid.pin_memory()
        return self


class PatchReader:
    """Reads patches one after the other; the file of the last one stays open or decoded for the next.

    Args:
        part: The pool or the labeled images, for messages.
        root: Data root.
    """

    def __init__(self, part: Part, root: Path) -> None:
        self._part, self._root = part, root
        self._file: str | None = None  # of the last patch, and its pixels unless it is read by windows
        self._image: Decoded | None = None

    def read(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (H, W, 3) of a row of the index, and bool (H, W) where they have data; None if everywhere.

        Raises:
            ImageError: It cannot be read, or its file has changed since it was indexed.
        """
        if row["error"] is not None:
            raise ImageError(row["error"])
        file = row["file"]
        if self._file != file:
            self._require_unchanged(self._root / parse(file).file, row)
            self._file, self._image = file, None
            if row["name"] != file and not is_tiff(self._root / file):  # other windows will follow
                pixels, valid = read_image_with_valid(self._root / file)
                self._image = Decoded(pixels, valid=valid)
        if self._image is None:
            return read_image_with_valid(self._root / row["name"])
        return self._image.read_with_valid(row["top"], row["left"], row["height"], row["width"])

    def _require_unchanged(self, path: Path, row: Mapping[str, Any]) -> None:
        try:
            status = path.stat()
        except OSError as error:
            raise ImageError(path, f"cannot be read ({error.strerror})") from error
        if (status.st_size, status.st_mtime_ns) != (row["bytes"], row["modified"]):
            folders = index_folders(self._part.path)
            hint = f"Delete {folders}, and run all steps again"
            raise ImageError(path, "has changed since it was indexed", hint)


class PatchBatches(IterableDataset):
    """Batches of the patches of shards, in order; loader workers take turns.

    Args:
        part: The pool or the labeled images.
        shards: Numbers of the shards.
        root: Data root.
        batch_size: Patches per batch.
    """

    def __init__(self, part: Part, shards: Sequence[int], root: Path, batch_size: int) -> None:
        self.part, self.shards, self.batch_size = part, shards, batch_size
        self._reader = PatchReader(part, root)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._batches(turn, turns)

    def _batches(self, turn: int, turns: int) -> Iterator[Batch]:
        number = 0
        for shard in self.shards:
            rows = read_shard(self.part.shard("index", shard)).to_pylist()
            groups = list(self._groups(rows))
            for i, group in enumerate(groups):
                if number % turns == turn:
                    batch = self._read(shard, rows, group)
                    batch.last = i == len(groups) - 1
                    yield batch
                number += 1

    def _groups(self, rows: list[dict[str, Any]]) -> Iterator[list[int]]:
        """Rows of each batch: patches of equal size, in order, so that windows of a file stay together."""

        def size(row: int) -> tuple[int, int]:
            return rows[row]["height"], rows[row]["width"]

        for _, same in groupby(sorted(range(len(rows)), key=size), size):
            while group := list(islice(same, self.batch_size)):
                yield group

    def _read(self, shard: int, rows: list[dict[str, Any]], group: list[int]) -> Batch:
        read: list[tuple[int, tuple[np.ndarray, np.ndarray]]] = []
        errors: dict[int, str] = {}
        for row in group:
            try:
                pixels, has_data = self._reader.read(rows[row])
            except ImageError as error:
                errors[row] = str(error)
                continue
            full = np.ones(pixels.shape[:2], bool) if has_data is None else has_data
            read.append((row, (pixels, full)))
        images = np.stack([pixels for _, (pixels, _) in read]) if read else np.zeros((0, 1, 1, 3), np.uint8)
        valid = np.stack([has_data for _, (_, has_data) in read]) if read else np.zeros((0, 1, 1), bool)
        return Batch(
            shard,
            [row for row, _ in read],
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(valid),
            [pixel_facts(*pixels) for _, pixels in read],
            errors,
        )


def pixel_facts(pixels: np.ndarray, valid: np.ndarray) -> tuple[float, float, float, int]:
    """Share of pixels with data, deviation, sharpness and perceptual hash of the grey values.

    The deviation is the standard deviation of the pixels with data. Sharpness is that of their Laplacian
    divided by it: near 0 for blurred images, about 0.2 to 2 for aerial images, 4.5 for white noise.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        valid: Bool (H, W).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    share = float(valid.mean())
    deviation = _deviation(grey, valid)
    edges = _deviation(cv2.Laplacian(grey, cv2.CV_32F), valid)
    # Reduced by area first, which costs a fraction of Pillow's filter on the full image.
    side = 4 * HASH_SIDE
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    bits = require("imagehash").phash(Image.fromarray(small), HASH_SIDE).hash
    return share, deviation, edges / max(deviation, 1e-6), int.from_bytes(np.packbits(bits).tobytes(), "big")


def _deviation(values: np.ndarray, valid: np.ndarray) -> float:
    _, deviation = cv2.meanStdDev(values, mask=valid.astype(np.uint8))  # 0 without any pixel
    return float(deviation[0, 0])


def patch_loader(
    part: Part, shards: Sequence[int], root: Path, batch_size: int, workers: int, *, pin_memory: bool = False
) -> Loader:
    """Loader of the batches of shards, in order.

    Args:
        part: The pool or the labeled images.
        shards: Numbers of the shards.
        root: Data root.
        batch_size: Patches per batch.
        workers: Number of loader processes.
        pin_memory: Copy batches to pinned memory.
    """
    return Loader(
        PatchBatches(part, shards, root, batch_size),
        collate_fn=_as_is,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_init_worker,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
    )


def _as_is(batch: Any) -> Any:  # noqa: ANN401 - a batch is one item of the loader
    return batch


def _init_worker(_: int) -> None:
    init_worker()
