"""FixMatch and the options of few_labels.yaml against labels alone, on real tiles.

    python -m experiments.real_images --data DATA [--dataset dubai] [--backbone NAME] [--init ENCODER]

Labeled: a few training tiles of the dataset; unlabeled: the others (*own*), or these and RSSCN7 (*all*);
validation: tiles of another scene (dubai), another area (fair_buildings), or the last ones (epfl_roads). The
bound trains on the labels of all training tiles.

Finished runs are kept, interrupted runs are resumed. Adds a table of means and standard deviations to
`report.md`. docs/real_images.md describes DATA.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from experiments.generated_scenes import arm_options
from experiments.real_tiles import EPFL_UNLABELED, RSSCN7, TASKS, is_validation, tiles, unlabeled
from experiments.report_tables import add_table, markdown_table, mean_and_deviation
from experiments.training_runs import REPO, experiment_parser, run_key, train_s4p
from s5.backbones import file_name
from s5.command import run_command
from s5.data.splits import format_line, write_split

CONFIG = REPO / "experiments/configs/real_images.yaml"
TABLES = REPO / "experiments/configs/real_images_mdf.yaml"
DUBAI_LABELED = ("003", "008")  # two tiles of each scene
LABELED_EVERY = 16  # in the other datasets, one training tile in so many is labeled
METHODS = {
    "labels alone": ("labels", "labeled", "unlabeled_own"),
    "FixMatch, own": ("fixmatch", "labeled", "unlabeled_own"),
    "FixMatch, all": ("fixmatch", "labeled", "unlabeled"),
    "few_labels.yaml, own": ("best", "labeled", "unlabeled_own"),
    "few_labels.yaml, all": ("best", "labeled", "unlabeled"),
    "milder strong views, own": ("mild", "labeled", "unlabeled_own"),
    "milder strong views, all": ("mild", "labeled", "unlabeled"),
    "bound": ("labels", "labeled_all", "unlabeled_own"),
}
"""Arm of `experiments.generated_scenes`, labeled and unlabeled split."""


def write_splits(data: Path, out: Path, dataset: str = "dubai", mixed: bool = True) -> None:
    """Write the splits, so that no location is in training and validation where locations are known.

    `unlabeled_own` has the unlabeled tiles of the dataset, `unlabeled` (if `mixed`) also RSSCN7;
    `labeled_all` has all training tiles, with their masks.
    """
    splits: dict[str, list[str]] = {"labeled": [], "labeled_all": [], "unlabeled_own": [], "val": []}
    for image, line in tiles(data, dataset):
        if is_validation(dataset, image):
            splits["val"].append(line)
            continue
        if dataset == "dubai":
            labeled = Path(image).stem.split("_")[1] in DUBAI_LABELED
        else:
            labeled = len(splits["labeled_all"]) % LABELED_EVERY == 0
        splits["labeled_all"].append(line)
        if labeled:
            splits["labeled"].append(line)
        else:
            splits["unlabeled_own"].append(format_line(image))
    if dataset == "epfl_roads":
        splits["unlabeled_own"] += unlabeled(data, EPFL_UNLABELED)
    if mixed:
        splits["unlabeled"] = splits["unlabeled_own"] + unlabeled(data, RSSCN7)
    for name, lines in splits.items():
        write_split(out / f"{name}.txt", lines)


def run(args: argparse.Namespace, method: str, seed: int) -> dict[str, float | None]:
    """Train one model, or take the result of a finished run."""
    arm, labeled, pool = METHODS[method]
    folder, names = folder_of(args), {"labeled": labeled, "unlabeled": pool, "val": "val"}
    labels = {"name": args.dataset, **yaml.safe_load(TABLES.read_text())["tasks"][args.dataset]["labels"]}
    options = [
        f"data_root={args.data.resolve()}",
        f"data.labels={json.dumps(labels)}",
        *(f"data.{part}.split={folder.parent.resolve() / name}.txt" for part, name in names.items()),
        f"schedule.total_iters={args.iters}",
        f"schedule.val_interval={args.iters}",
        f"seed={seed}",
        *arm_options(arm, args.iters, warmup=args.iters // 2),
    ]
    # Runs from other weights or with other options are other runs.
    work_dir = folder / f"{arm}_{labeled}_{pool}_{seed}_{run_key(args.init, options)}"
    return train_s4p(CONFIG, args, options, work_dir, args.iters, args.init)


def folder_of(args: argparse.Namespace) -> Path:
    """Where the runs and the report of this start are."""
    return args.out / args.dataset / f"{file_name(args.backbone)}_{Path(args.init).stem}_{args.iters}"


def report(args: argparse.Namespace, results: dict[str, list[dict[str, float | None]]]) -> str:
    """Table of mean ± standard deviation over the seeds, percent."""
    first = next(iter(results.values()))[0]
    rows = ["mIoU", "aAcc", *(name for name in first if name.startswith("IoU."))]
    columns = {
        method: {row: mean_and_deviation([scores[row] for scores in runs]) for row in rows}
        for method, runs in results.items()
    }
    title = (
        f"{args.dataset}, {args.backbone} from {args.init}, {args.iters} steps, {args.seeds} seeds; percent"
    )
    return "\n".join([title, "", *markdown_table(columns, rows)]) + "\n"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = experiment_parser(__doc__, "work_dirs/real_images")
    parser.add_argument("--dataset", choices=TASKS, default="dubai")
    parser.add_argument("--iters", type=int, default=1000)
    parser.add_argument("--init", default="none", help="encoder to start from; by default random weights")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="columns of the table"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the splits, run everything, print the table."""
    args = parse_args(argv)
    mixed = any(METHODS[method][2] == "unlabeled" for method in args.methods)
    write_splits(args.data, args.out / args.dataset, args.dataset, mixed)
    results: dict[str, list[dict[str, float | None]]] = {method: [] for method in args.methods}
    for seed in range(args.seeds):
        for method, runs in results.items():
            runs.append(run(args, method, seed))
    text = report(args, results)
    add_table(folder_of(args) / "report.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
