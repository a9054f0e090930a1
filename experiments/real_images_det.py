"""One detector for two small datasets of real images: one with held-out images, one to overfit.

    python -m experiments.real_images_det --data DATA [--checkpoint S4P.pth] [--cfg-options ...]

Datasets: rot/ucas_aod and rot/dota14 under DATA, images and labelTxt in DOTA's format; docs/real_images.md
lists their sources. Both are cut into windows of 640 pixels by `python -m s5.data.prepare dota`; scores
are those of the full images. An interrupted run is resumed. Writes to the folder of results:

    evaluation/                final scores, tables, sheets with ground-truth boxes
    predictions/               drawings, text and GeoJSON of the full images
    <task>_predictions.jpg     predictions without the images, which may not be redistributed
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import s5
from experiments.training_runs import REPO, run_command_line
from s5.command import run_command
from s5.data.folders import find_images
from s5.data.image_io import read_image, write_image
from s5.data.oriented.detections import make_detections
from s5.data.oriented.drawing import draw_detections
from s5.data.oriented.geometry import to_boxes
from s5.training.hooks.pictures import contact_sheet

CONFIG = "Object_Detection/configs/obb/oriented_rcnn/small/vit_t_moe_real_images.py"
WINDOW, GAP = 640, 128
SHEET_IMAGES, SHEET_COLUMNS = 9, 3
HELD_OUT = 1300  # images of ucas_aod from this number on: neighbouring numbers may show the same location


def ucas_parts(folder: Path) -> dict[str, list[str]]:
    """Names of the training and validation images of ucas_aod, divided by number."""
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for path in sorted((folder / "labelTxt").glob("*.txt")):
        number = int(re.sub(r"\D", "", path.stem))
        parts["val" if number >= HELD_OUT else "train"].append(path.stem)
    return parts


def arrange(folder: Path, out: Path) -> None:
    """Copy ucas_aod into the layout that the preparation reads: a folder for each part."""
    for part, names in ucas_parts(folder).items():
        for kind, extension in (("images", ".jpg"), ("labelTxt", ".txt")):
            (out / part / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(folder / kind / (name + extension), out / part / kind / (name + extension))


def prepare(data: Path, out: Path) -> None:
    """Cut both datasets; existing windows are kept."""
    arrange(data / "rot/ucas_aod", out / "ucas_aod")
    _cut(out / "ucas_aod", out, "ucas", ["--classes", "plane", "car"])
    _cut(data / "rot/dota14", out, "dota14", ["--version", "1.0"])


def _cut(source: Path, out: Path, name: str, options: Iterable[str]) -> None:
    command = ["-m", "s5.data.prepare", "dota", "--src", source, "--out", out, "--name", name, *options]
    run_command_line([sys.executable, *command, "--size", WINDOW, "--gap", GAP])


def write_sheet(path: Path, texts: Sequence[Path], images: Sequence[Path], classes: Sequence[str]) -> None:
    """Draw detections on white, in rows of :data:`SHEET_COLUMNS` images, evenly spaced over the list.

    Args:
        path: Output file.
        texts: Detections of each image, as predict.py writes them.
        images: The images, which determine the sizes of the drawings.
        classes: Names of the classes.
    """
    chosen = np.linspace(0, len(texts) - 1, min(SHEET_IMAGES, len(texts))).round().astype(int)
    drawings = []
    for i in chosen:
        lines = [line.split() for line in texts[i].read_text().splitlines()]
        corners = np.array([line[:8] for line in lines], np.float32).reshape(-1, 4, 2)
        scores, labels = [line[10] for line in lines], [classes.index(line[8]) for line in lines]
        found = make_detections(to_boxes(corners), scores, labels)
        drawings.append(draw_detections(np.full_like(read_image(images[i]), 255), 1, found, classes))
    rows = [drawings[i : i + SHEET_COLUMNS] for i in range(0, len(drawings), SHEET_COLUMNS)]
    write_image(path, contact_sheet(rows))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets named above")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/real_images_det"))
    parser.add_argument(
        "--checkpoint", type=Path, help="S4P backbone to start from (default: random weights)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="other values")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prepare the data, train, and write the final scores and drawings."""
    args = parse_args(argv)
    data, run = args.out.resolve() / "data", args.out.resolve() / "run"
    prepare(args.data, data)
    options = [f"data_root={data}", *args.cfg_options]
    start = [] if args.checkpoint is None else ["--init", args.checkpoint]
    device = ["--device", args.device, "--cfg-options", *options]
    tools = REPO / "Object_Detection/tools"
    run_command_line(
        [sys.executable, tools / "train.py", REPO / CONFIG, "--work-dir", run, "--resume", *start, *device]
    )
    weights, evaluation = run / "vit_t_moe_det.pth", args.out / "evaluation"
    run_command_line(
        [sys.executable, tools / "test.py", REPO / CONFIG, weights, "--work-dir", evaluation, *device]
    )
    classes = s5.load(weights, "cpu").classes
    predictions = args.out / "predictions"
    for task, images in (("ucas", data / "ucas_aod/val/images"), ("dota14", args.data / "rot/dota14/images")):
        chosen = ["--tasks", task, "--out", predictions, "--device", args.device]
        chosen += ["--window", WINDOW, "--overlap", GAP]
        run_command_line([sys.executable, tools / "predict.py", weights, images, *chosen])
        found = find_images(images)
        texts = [predictions / task / "dota" / f"{path.stem}.txt" for path in found]
        write_sheet(args.out / f"{task}_predictions.jpg", texts, found, classes[task])
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
