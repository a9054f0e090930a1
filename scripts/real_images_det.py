"""One detector for two small data sets of real images: one held out in part, one to be learned by heart.

    python scripts/real_images_det.py --data DATA [--checkpoint S4P.pth] [--cfg-options schedule.epochs=20]

Data sets: rot/ucas_aod and rot/dota14 under DATA, images and labelTxt in DOTA's format. Both are cut into
windows of 640 pixels by ``python -m s5.data.prepare dota``; scores are those of the whole images. An
interrupted run goes on.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from training_runs import REPO, run_command_line

from s5.engine.command import run_command

CONFIG = "Object_Detection/configs/obb/oriented_rcnn/small/vit_t_moe_real_images.py"
WINDOW, GAP = 640, 128
HELD_OUT = 1300  # images of ucas_aod from this number on: neighbouring numbers may show one place


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
    """Cut both data sets; what is cut already stays."""
    arrange(data / "rot/ucas_aod", out / "ucas_aod")
    _cut(out / "ucas_aod", out, "ucas", ["--classes", "plane", "car"])
    _cut(data / "rot/dota14", out, "dota14", ["--version", "1.0"])


def _cut(source: Path, out: Path, name: str, options: Iterable[str]) -> None:
    command = ["-m", "s5.data.prepare", "dota", "--src", source, "--out", out, "--name", name, *options]
    run_command_line([sys.executable, *command, "--size", WINDOW, "--gap", GAP])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets named above")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/real_images_det"))
    parser.add_argument(
        "--checkpoint", type=Path, help="S4P backbone to start from (default: random weights)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="other values")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, and write the scores and drawings of the end."""
    args = parse_args(argv)
    data, run = args.out.resolve() / "data", args.out.resolve() / "run"
    prepare(args.data, data)
    options = [f"data_root={data}", *args.cfg_options]
    start = [] if args.checkpoint is None else ["--load-from", args.checkpoint]
    place = ["--device", args.device, "--cfg-options", *options]
    tools = REPO / "Object_Detection/tools"
    run_command_line(
        [sys.executable, tools / "train.py", REPO / CONFIG, "--work-dir", run, "--resume", *start, *place]
    )
    weights = run / "vit_t_moe_det.pth"
    run_command_line(
        [sys.executable, tools / "test.py", REPO / CONFIG, weights, "--out", args.out / "evaluation", *place]
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
