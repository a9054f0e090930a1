"""The datasets of the quickstart's fine-tuning: each has scenes of its own, labeled in one label set.

    python -m scenes.mdf_data work_dirs/quickstart/data/mdf

Writes the scenes of each task below `<task>`, its masks in the folder `<task>` beside their images, and the
split files `splits/<task>_{train,val}.txt`. Scenes of an earlier run are kept, and replaced where this
version draws others.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from s5.data.image_io import read_mask, write_mask
from s5.data.prepare.parallel import default_workers
from s5.data.splits import format_line, write_split
from scenes import LABEL_SETS
from scenes.dataset import Request, write_dataset

TASKS = ("landcover", "roads", "water")
TRAIN, VAL = 60, 20


def write_tasks(root: Path, size: int, train: int, val: int, workers: int) -> None:
    """Write the dataset of every task; worlds of different seeds have no scene in common.

    Args:
        root: Folder of the datasets; S4P's scenes, which are elsewhere, are those of seed 0.
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
        print(f"{root / task}: {written} scenes written, {kept} were there before")


def relabel(root: Path, folder: Path, task: str) -> list[str]:
    """Write the masks of a folder once more, beside them, in the label set of a task.

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
    """The command of a script that writes datasets: reads where to, and writes them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", type=Path, help="where to write a folder for each task")
    root = parser.parse_args(argv).root
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(root)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Write the datasets."""
    return write_to(
        lambda root: write_tasks(root, Request.size, TRAIN, VAL, default_workers()), __doc__, argv
    )


if __name__ == "__main__":
    sys.exit(main())
