"""Generate the detection datasets of the quickstart, each with separate scenes and classes.

    python -m scenes.det_data work_dirs/quickstart/data/det

Writes the scenes of each task to `<task>`. Ships and planes have the boxes of the generator, in `labelTxt`;
buildings have the minimum-area rectangles of their masks, in `buildings`. Scenes of an earlier run are kept,
or replaced if this version generates different ones.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from s5.command import usable_cpus
from s5.data.image_io import read_mask
from s5.data.oriented.annotations import Objects, make_objects, write_objects
from scenes import CLASSES
from scenes.dataset import Request, write_dataset
from scenes.mdf_data import write_to

BUILDINGS = "buildings"
TASKS = {"craft": 11, BUILDINGS: 12}
"""Seed of each task, different from those of other stages."""

SIZE, TRAIN, VAL = 128, 240, 80
MIN_PIXELS = 40  # smaller components are remains of buildings behind trees or at the border
MIN_FILL = (
    0.65  # share of the rectangle; less means a courtyard, an L shape, or several houses in a component
)


def write_tasks(root: Path, size: int, train: int, val: int, workers: int) -> None:
    """Write the dataset of every task; different seeds have no scene in common.

    Args:
        root: Folder of the datasets.
        size: Image side in pixels.
        train: Number of training scenes of each task, some without objects.
        val: Number of validation scenes of each task.
        workers: Number of processes.
    """
    for task, seed in TASKS.items():
        request = Request(labeled=train, unlabeled=0, val=val, size=size, seed=seed)
        written, kept = write_dataset(root / task, request, workers, overwrite=True)
        print(f"{root / task}: {written} scenes written, {kept} existed already")
    for folder in sorted((root / BUILDINGS).glob("labeled/scenes/*")):
        for mask in sorted((folder / "masks").iterdir()):
            found = building_boxes(read_mask(mask) == CLASSES.index("building"))
            write_objects(folder / BUILDINGS / f"{mask.stem}.txt", found, ["building"])


def building_boxes(mask: np.ndarray) -> Objects:
    """Minimum-area rectangle of each connected component of a mask, bool (H, W).

    Small components and those that hardly fill their rectangle are marked as difficult.
    """
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    polygons, difficult = [], []
    for component in range(1, count):
        y, x = np.nonzero(components == component)
        corners = np.concatenate([np.stack([x + i, y + j], 1) for i in (0, 1) for j in (0, 1)])
        rectangle = cv2.minAreaRect(corners.astype(np.float32))
        area = stats[component, cv2.CC_STAT_AREA]
        polygons.append(cv2.boxPoints(rectangle))
        difficult.append(area < max(MIN_PIXELS, MIN_FILL * rectangle[1][0] * rectangle[1][1]))
    return make_objects(polygons, [0] * len(polygons), difficult)


def main(argv: list[str] | None = None) -> int:
    """Write the datasets."""
    return write_to(lambda root: write_tasks(root, SIZE, TRAIN, VAL, usable_cpus()), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
