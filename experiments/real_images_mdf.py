"""One expert model for three datasets of real tiles, against a shared dense model and one model per dataset.

    python -m experiments.real_images_mdf --data DATA [--seeds 3] [--epochs 16] [--checkpoint S4P.pth]

Datasets: seg/dubai, seg/fair_buildings and seg/epfl_roads under DATA, divided by location where it is known.
All models of a seed start from the same weights and see equally many images of each dataset. Finished
runs are kept, interrupted runs are resumed. Writes `report.md` with means and standard deviations, and
contact sheets for each dataset. docs/real_images.md describes DATA.
"""

import argparse
import statistics
import sys
from pathlib import Path

from experiments.prediction_sheets import write_sheet
from experiments.real_images_mdf_runs import METHODS, Experiment
from experiments.real_tiles import TASKS
from experiments.report_tables import MEAN, majority_scores, markdown_table, mean_and_deviation
from experiments.training_runs import REPO, experiment_parser
from s5.command import run_command
from s5.segmentation import mdf
from s5.segmentation.mdf_config import MDFConfig

OURS = "MoE-MDF"
AVERAGE = "average mIoU"


def report(experiment: Experiment, results: dict[str, list[dict[str, float | None]]]) -> str:
    """Tables of mean ± standard deviation over the seeds: datasets, costs, then classes."""
    args, cfg = experiment.args, experiment.cfg
    batches = ", ".join(f"{task.batch_size} {name}" for name, task in cfg.tasks.items())
    start = "random weights" if args.checkpoint is None else str(args.checkpoint)
    means = [*(f"{task}/{MEAN}" for task in TASKS), AVERAGE]
    classes = [name for name in results[OURS][0] if "/IoU." in name]
    scores = {
        method: {row: mean_and_deviation([run[row] for run in runs]) for row in (*means, *classes)}
        for method, runs in (results | {"most frequent class": [trivial_scores(cfg)]}).items()
    }
    lines = [
        f"{args.backbone} from {start}, {experiment.steps} steps of {batches} images, {args.seeds} seed(s)",
        "",
        "Percent, mean ± standard deviation over the seeds:",
        "",
        *markdown_table(scores, means),
        "",
        *costs(experiment),
        "",
        *(_differences(results, other) for other in METHODS if other != OURS),
        "",
        *markdown_table(scores, classes),
    ]
    return "\n".join(lines) + "\n"


def costs(experiment: Experiment) -> list[str]:
    """Table of the methods' costs, summed over the models of each method."""
    seeds = range(experiment.args.seeds)
    columns = {
        method: {
            "models": str(len(METHODS[method].models)),
            "parameters, millions": f"{experiment.parameters(method) / 1e6:.2f}",
            "training images/s": mean_and_deviation([experiment.images_per_second(method, s) for s in seeds]),
        }
        for method in METHODS
    }
    return markdown_table(columns, list(columns[OURS]))


def trivial_scores(cfg: MDFConfig) -> dict[str, float | None]:
    """Scores of predicting the most frequent class everywhere."""
    scores: dict[str, float | None] = {}
    for task, table in mdf.build_tables(cfg).items():
        _, by_class = majority_scores(mdf.validation_split(cfg, task), table)
        scores[f"{task}/{MEAN}"] = by_class.pop(MEAN)
        scores |= {f"{task}/IoU.{name}": value for name, value in by_class.items()}
    return with_average(scores)


def with_average(scores: dict[str, float | None]) -> dict[str, float | None]:
    """Scores of all datasets, and the average of their means."""
    return scores | {AVERAGE: statistics.mean(scores[f"{task}/{MEAN}"] for task in TASKS)}


def _differences(results: dict[str, list[dict[str, float | None]]], other: str) -> str:
    pairs = zip(results[OURS], results[other], strict=True)
    values = ", ".join(f"{ours[AVERAGE] - theirs[AVERAGE]:+.2f}" for ours, theirs in pairs)
    return f"- {AVERAGE} of {OURS} minus that of {other}, by seed: {values}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = experiment_parser(__doc__, "work_dirs/real_images_mdf")
    parser.add_argument("--config", type=Path, default=REPO / "experiments/configs/real_images_mdf.yaml")
    parser.add_argument("--epochs", type=int, default=16, help="of steps_per_epoch in the configuration")
    parser.add_argument("--checkpoint", type=Path, help="dense weights to start from (default: random)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the splits, run everything, print the tables."""
    experiment = Experiment(parse_args(argv))
    experiment.write_splits()
    results: dict[str, list[dict[str, float | None]]] = {method: [] for method in METHODS}
    for seed in range(experiment.args.seeds):
        for method, runs in results.items():
            runs.append(with_average(experiment.run(method, seed)))
    text = report(experiment, results)
    (experiment.folder / "report.md").write_text(text, encoding="utf-8")
    print(text)
    for task in TASKS:
        files = {method: experiment.weights(method, task) for method in METHODS}
        split = experiment.splits / f"{task}_val.txt"
        write_sheet(experiment.folder / f"{task}.jpg", files, task, split, experiment.args.data)
    print(f"Report and pictures (image, truth, {', '.join(METHODS)}): {experiment.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
