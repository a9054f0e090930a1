"""Generate the fine-tuning datasets of the quickstart, each with separate scenes and its own label set.

    python -m scenes.mdf_data work_dirs/quickstart/data/mdf

Writes the scenes of each task to `<task>`, its masks to the folder `<task>` beside the images, and the
split files `splits/<task>_{train,val}.txt`. Scenes of an earlier run are kept, or replaced if this version
generates different ones.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from s5.command import usable_cpus
from s5.data.image_io import read_mask, write_mask
from s5.data.splits import format_line, write_split
from scenes import LABEL_SETS
from scenes.dataset import Request, write_dataset

TASKS = ("landcover", "roads", "water")
TRAIN, VAL = 60, 20


def write_tasks(root: Path, size: int, train: int, val: int, workers: int) -> None:
    """Write the dataset of every task; different seeds have no scene in common (S4P has seed 0).

    Args:
        root: Folder of the datasets.
        size: Image side in pixels.
        train: Number of training scenes of each task.
        val: Number of validation scenes of each task.
        workers: Number of processes.
    """
    for seed, task in enumerate(TASKS, start=1):
        request = Request(labeled=train, unlabeled=0, val=val, size=size, seed=seed)
        written, kept = write_dataset(root / task, request, workers, overwrite=True)
        for part in ("train", "val"):
            lines = relabel(root, root / task / "labeled/scenes" / part, task)
            write_split(root / "splits" / f"{task}_{part}.txt", lines)
        print(f"{root / task}: {written} scenes written, {kept} existed already")


def relabel(root: Path, folder: Path, task: str) -> list[str]:
    """Write the masks of a folder in the label set of a task, to a folder beside them.

    Returns:
        Lines of a split file: every image with its new mask, relative to `root`.
    """
    lines = []
    for image in sorted((folder / "images").glob("*.png")):
        mask = folder / task / image.name
        write_mask(mask, LABEL_SETS[task].apply(read_mask(folder / "masks" / image.name)))
        lines.append(format_line(*(path.relative_to(root).as_posix() for path in (image, mask))))
    return lines


def write_to(write: Callable[[Path], None], description: str | None, argv: list[str] | None) -> int:
    """Run a script that writes datasets: parse the output folder and call `write`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", type=Path, help="output folder; each task gets a subfolder")
    root = parser.parse_args(argv).root
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(root)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Write the datasets."""
    return write_to(lambda root: write_tasks(root, Request.size, TRAIN, VAL, usable_cpus()), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
