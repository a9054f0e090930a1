"""Write scenes to disk as a dataset of labeled, unlabeled and validation images with split files."""

import json
import logging
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s5.command import Progress
from s5.data.files import write_bytes
from s5.data.image_io import write_image, write_mask
from s5.data.oriented.detections import corners_text
from s5.data.prepare.pipeline import run_parallel
from s5.data.splits import format_line, write_split
from s5.errors import DataError
from scenes.classes import BOX_CLASSES
from scenes.scene import generate_scene, polygons, visible_share

logger = logging.getLogger(__name__)

GENERATOR = 1
"""Version of the scenes; increase it when the same seed and index give a different scene."""

MANIFEST = "scenes.json"
MOST = 1_000_000  # scenes in one split
MOSTLY_VISIBLE = 0.8  # share of a box's area below which its object is difficult


class Part(NamedTuple):
    """A split of the dataset: its folder and split file, and its first scene index."""

    folder: str
    split: str
    first: int
    labels: bool


PARTS = {
    "labeled": Part("labeled/scenes/train", "splits/labeled/labeled.txt", 0, True),
    "unlabeled": Part("unlabeled/scenes", "splits/unlabeled/scenes.txt", MOST, False),
    "val": Part("labeled/scenes/val", "splits/val.txt", 2 * MOST, True),
}


@dataclass(frozen=True)
class Request:
    """Parameters of the dataset: numbers of scenes, image side in pixels, and the seed."""

    labeled: int = 40
    unlabeled: int = 200
    val: int = 40
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in PARTS:
            if not 0 <= getattr(self, name) <= MOST:
                raise DataError(
                    f"{name}={getattr(self, name)}: the number of scenes must be between 0 and {MOST}"
                )
        if self.size < 32:
            raise DataError(f"size={self.size}: the side of a scene must be at least 32 pixels")


class Files(NamedTuple):
    """The files of a scene, relative to the data root; unlabeled scenes have only an image."""

    image: str
    mask: str | None = None
    boxes: str | None = None

    def complete(self, root: Path) -> bool:
        """Whether all of them exist under `root`."""
        return all((root / path).is_file() for path in self if path)


def scene_files(part: str, number: int) -> Files:
    """Paths of scene `number` of a split."""
    folder, labels = PARTS[part].folder, PARTS[part].labels
    if not labels:
        return Files(f"{folder}/{number:06d}.jpg")
    return Files(*(f"{folder}/{kind}/{number:06d}.{end}" for kind, end in _KINDS))


_KINDS = (("images", "png"), ("masks", "png"), ("labelTxt", "txt"))


def write_dataset(root: Path, request: Request, workers: int = 1, overwrite: bool = False) -> tuple[int, int]:
    """Generate missing scenes; can be interrupted and called again.

    Args:
        root: The data root; created if missing.
        request: What to generate.
        workers: Number of processes; the result does not depend on it.
        overwrite: Replace scenes generated for another request.

    Returns:
        Numbers of scenes written and of scenes that existed already.

    Raises:
        DataError: `root` contains scenes of another request, or other files at the paths of the scenes.
        OSError: `root` cannot be written.
    """
    _claim(root, request, overwrite)
    items = [(part, number) for part in PARTS for number in range(getattr(request, part))]
    todo = [item for item in items if not scene_files(*item).complete(root)]
    results = run_parallel(partial(_write_scene, root, request), todo, min(workers, len(todo)))
    with Progress(len(todo), "generating", "scenes", logger) as progress, closing(results):
        for _ in results:
            progress.update()
    for name, part in PARTS.items():
        lines = [format_line(*scene_files(name, number)[:2]) for number in range(getattr(request, name))]
        if lines:
            write_split(root / part.split, lines)
    return len(todo), len(items) - len(todo)


def _write_scene(root: Path, request: Request, item: tuple[str, int]) -> None:
    part, number = item
    files = scene_files(part, number)
    scene = generate_scene(request.seed, PARTS[part].first + number, request.size)
    write_image(root / files.image, scene.image, quality=92)
    if files.mask and files.boxes:
        write_mask(root / files.mask, scene.mask)
        write_bytes(root / files.boxes, dota_lines(scene.boxes, request.size).encode())


def dota_lines(boxes: np.ndarray, size: int) -> str:
    """DOTA text of boxes (N, 6); difficulty 1 marks boxes cut by the border of an image of `size` pixels."""
    cut = visible_share(boxes, size) < MOSTLY_VISIBLE
    rows = zip(polygons(boxes).reshape(-1, 8), boxes[:, 5], cut, strict=True)
    return "".join(f"{corners_text(row)} {BOX_CLASSES[int(label)]} {int(c)}\n" for row, label, c in rows)


def _claim(root: Path, request: Request, overwrite: bool) -> None:
    """Record the request in `root`; refuse to mix scenes or overwrite other files."""
    manifest, wanted = root / MANIFEST, {"generator": GENERATOR, **asdict(request)}
    targets = [root / path for part in PARTS.values() for path in (part.folder, part.split)]
    if manifest.is_file():
        found = _read_manifest(manifest)
        if found == wanted:
            return
        if not overwrite:
            change = ", ".join(
                f"{k}={found.get(k)} (requested: {v})" for k, v in wanted.items() if found.get(k) != v
            )
            raise DataError(
                f"{manifest}: the existing scenes have {change}. "
                "Pass --overwrite to replace them, or another --out"
            )
        logger.info("replacing the scenes in %s, which were generated with other parameters", root)
        manifest.unlink()
        _remove(targets)
    taken = [str(path) for path in targets if path.exists()]
    if taken:
        raise DataError(
            f"{taken[0]} exists but was not written by this command; choose another --out than {root}"
        )
    write_bytes(manifest, (json.dumps(wanted, indent=2) + "\n").encode())


def _read_manifest(path: Path) -> dict[str, int]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path} was not written by this command ({error}); choose another --out") from error


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
