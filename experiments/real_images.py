"""S4P, as published and with the options of few_labels.yaml, against its labels alone, on real tiles.

    python -m experiments.real_images --data DATA [--iters 1000] [--backbone NAME] [--init ENCODER]

Labeled: two tiles of five Dubai scenes; unlabeled: their other tiles, with and without RSSCN7; validation:
the sixth scene. The bound trains on the labels of all tiles of the five scenes.

Finished runs are kept, interrupted runs are resumed. Writes `report.md` with means and standard
deviations. docs/real_images.md describes DATA.
"""

import argparse
import sys
from pathlib import Path

from experiments.generated_scenes import arm_options
from experiments.real_tiles import is_validation, tiles
from experiments.report_tables import markdown_table, mean_and_deviation
from experiments.training_runs import REPO, experiment_parser, train_s4p
from s5.backbones import file_name
from s5.command import run_command
from s5.data.splits import format_line, write_split

CONFIG = REPO / "experiments/configs/real_images.yaml"
LABELED_TILES = ("003", "008")
METHODS = {
    "labels alone": ("labels", "labeled", "unlabeled"),
    "FixMatch": ("fixmatch", "labeled", "unlabeled"),
    "few_labels.yaml": ("best", "labeled", "unlabeled"),
    "few_labels.yaml, Dubai alone": ("best", "labeled", "unlabeled_dubai"),
    "milder strong views": ("mild", "labeled", "unlabeled"),
    "milder strong views, Dubai alone": ("mild", "labeled", "unlabeled_dubai"),
    "bound": ("labels", "labeled_dubai", "unlabeled"),
}
"""Arm of `experiments.generated_scenes`, labeled and unlabeled split."""


def write_splits(data: Path, out: Path) -> None:
    """Write the splits, by scene, so that no scene is in training and validation.

    `unlabeled_dubai` has the unlabeled tiles of the labeled scenes, `unlabeled` also RSSCN7; `labeled_dubai`
    has all tiles of the labeled scenes, with their masks.
    """
    splits: dict[str, list[str]] = {"labeled": [], "labeled_dubai": [], "unlabeled_dubai": [], "val": []}
    for image, line in tiles(data, "dubai"):
        if is_validation("dubai", image):
            splits["val"].append(line)
            continue
        splits["labeled_dubai"].append(line)
        if Path(image).stem.split("_")[1] in LABELED_TILES:
            splits["labeled"].append(line)
        else:
            splits["unlabeled_dubai"].append(format_line(image))
    others = sorted(p.relative_to(data).as_posix() for p in data.glob("unlabeled/rsscn7/*/*.jpg"))
    splits["unlabeled"] = splits["unlabeled_dubai"] + others
    for name, lines in splits.items():
        write_split(out / f"{name}.txt", lines)


def run(args: argparse.Namespace, method: str, seed: int) -> dict[str, float | None]:
    """Train one model, or take the result of a finished run."""
    arm, labeled, pool = METHODS[method]
    names = {"labeled": labeled, "unlabeled": pool, "val": "val"}
    splits = [f"data.{part}.split={args.out.resolve() / name}.txt" for part, name in names.items()]
    schedule = [f"schedule.total_iters={args.iters}", f"schedule.val_interval={args.iters}", f"seed={seed}"]
    own = arm_options(arm, args.iters, warmup=args.iters // 2)
    options = [f"data_root={args.data.resolve()}", *splits, *schedule, *own]
    work_dir = folder_of(args) / f"{arm}_{labeled}_{pool}_{seed}"
    return train_s4p(CONFIG, args, options, work_dir, args.iters, args.init)


def folder_of(args: argparse.Namespace) -> Path:
    """Where the runs and the report of this start are."""
    return args.out / f"{file_name(args.backbone)}_{Path(args.init).stem}_{args.iters}"


def report(args: argparse.Namespace, results: dict[str, list[dict[str, float | None]]]) -> str:
    """Table of mean ± standard deviation over the seeds, percent."""
    first = next(iter(results.values()))[0]
    rows = ["mIoU", "aAcc", *(name for name in first if name.startswith("IoU."))]
    columns = {
        method: {row: mean_and_deviation([scores[row] for scores in runs]) for row in rows}
        for method, runs in results.items()
    }
    title = f"{args.backbone} from {args.init}, {args.iters} iterations, seeds 0 to {args.seeds - 1}; percent"
    return "\n".join([title, "", *markdown_table(columns, rows)]) + "\n"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = experiment_parser(__doc__, "work_dirs/real_images")
    parser.add_argument("--iters", type=int, default=1000)
    parser.add_argument("--init", default="none", help="encoder to start from; by default random weights")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows of the table"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the splits, run everything, print the table."""
    args = parse_args(argv)
    write_splits(args.data, args.out)
    results: dict[str, list[dict[str, float | None]]] = {method: [] for method in args.methods}
    for seed in range(args.seeds):
        for method, runs in results.items():
            runs.append(run(args, method, seed))
    text = report(args, results)
    (folder_of(args) / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
