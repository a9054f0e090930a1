"""S4P on generated scenes, against its labels alone and against true labels for all scenes.

    python -m experiments.generated_scenes [--labels 10] [--arms labels fixmatch bound] [--seeds 5]

Every seed has its own labeled scenes. A first run trains on these alone, from random weights or `--init`; all
arms of the seed are second runs from its model, with a lower learning rate. The unlabeled scenes have true
labels, too, which only the arms `bound` (supervised, on all scenes) and `truth` (FixMatch with true labels in
place of pseudo-labels) use. Finished runs are kept, interrupted runs are resumed. Adds a table to
`report.md`: mIoU on the validation scenes, and the gain over the labels alone and its share of the bound's.
"""

import argparse
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.report_tables import MEAN, add_table, markdown_table, mean_and_deviation
from experiments.training_runs import REPO, full_model, run_key, train_s4p
from s5.backbones import file_name
from s5.command import run_command, usable_cpus
from s5.data.image_io import write_mask
from s5.data.prepare.pipeline import run_parallel
from s5.data.splits import format_line, write_split
from scenes.dataset import PARTS, Request, scene_files, write_dataset
from scenes.scene import generate_scene

CONFIG = REPO / "experiments/configs/generated_scenes.yaml"
TRUTH, TRUTH_FOLDER = "splits/unlabeled/truth.txt", "unlabeled/truth"

ALONE = ["data.unlabeled.batch_size=0"]
MILD = [
    *(f"fixmatch.strong.{key}=0.25" for key in ("brightness", "contrast", "saturation")),
    "fixmatch.strong.hue=0.05",
    "fixmatch.strong.gray_p=0",
    "fixmatch.strong.blur_p=0",
]
VIEWS = ["fixmatch.strong.views=2", "fixmatch.feature_dropout=0.5"]
STEADY = ["fixmatch.momentum=0.99"]  # running means that follow runs as short as these
EMA = ["fixmatch.pseudo_labels=ema"]
RAMP = ["fixmatch.ramp_iters={ramp}"]
ALIGNED = [*STEADY, "fixmatch.alignment=labels"]
FREE = [*EMA, *RAMP, *ALIGNED, "fixmatch.threshold=freematch"]
ARMS: dict[str, list[str]] = {
    "labels": ALONE,
    "labels, equal time": ALONE,
    "bound": ALONE,
    "truth": ["fixmatch.pseudo_labels=stored", f"data.unlabeled.split={TRUTH}"],
    "fixmatch": [],
    # Published FixMatch with one method's options each:
    "ramp": RAMP,
    "ema": EMA,
    "alignment": ALIGNED,
    "flexmatch": [*STEADY, "fixmatch.threshold=flexmatch"],
    "freematch": [*STEADY, "fixmatch.threshold=freematch"],
    "softmatch": [*STEADY, "fixmatch.threshold=softmatch"],
    "unimatch": [*EMA, *VIEWS],
    "milder views": MILD,
    # Several together:
    "mild": [*FREE, *MILD],
    "best, one view": FREE,
    "best": [*FREE, *VIEWS],
}
"""Options of the second run of every arm; `{ramp}` stands for 15 % of its steps."""

FIRST = "first run"
SECOND_LR = "optim.lr=3.0e-4"
"""Learning rate of the second runs, with which they keep more of what the first one learned."""
EQUAL_TIME = 2.7
"""Steps of `labels, equal time`, as a multiple of the other arms': with as many unlabeled as labeled crops, a
step of `best` takes 2.7 times as long as one on labeled crops alone (EfficientNet-Lite0 on a CPU)."""

SCENES_PER_SEED = 40
"""Labeled scenes reserved for each seed, so that seeds share none."""


def arm_options(arm: str, steps: int, warmup: int = 0) -> list[str]:
    """`--cfg-options` of an arm in a run of this many steps.

    Args:
        arm: A key of `ARMS`, or `FIRST`.
        steps: Length of the run.
        warmup: Steps on labels alone before pseudo-labels of an EMA teacher; other arms have none.
    """
    options = [option.format(ramp=steps * 3 // 20) for option in (ARMS | {FIRST: ALONE})[arm]]
    if warmup and "fixmatch.pseudo_labels=ema" in options:
        options.append(f"fixmatch.warmup_iters={warmup}")
    return options


class Run(NamedTuple):
    """Folder and last scores of a finished run."""

    folder: Path
    scores: dict[str, float | None]


def prepare(root: Path, request: Request, workers: int) -> None:
    """Write the scenes and the true masks of the unlabeled ones; scenes of another request are replaced."""
    written, _ = write_dataset(root, request, workers, overwrite=True)
    if written:
        shutil.rmtree(root / TRUTH_FOLDER, ignore_errors=True)
    files = [(scene_files("unlabeled", n).image, _truth_file(n)) for n in range(request.unlabeled)]
    missing = [n for n, (_, mask) in enumerate(files) if not (root / mask).is_file()]
    for _ in run_parallel(partial(_write_truth, root, request), missing, workers):
        pass
    write_split(root / TRUTH, [format_line(*pair) for pair in files])


def _truth_file(number: int) -> str:
    return f"{TRUTH_FOLDER}/{number:06d}.png"


def _write_truth(root: Path, request: Request, number: int) -> None:
    scene = generate_scene(request.seed, PARTS["unlabeled"].first + number, request.size)
    write_mask(root / _truth_file(number), scene.mask)


def write_labeled(root: Path, labels: int, seed: int) -> tuple[str, str]:
    """Write the labeled splits of a seed, alone and with the true labels of all unlabeled scenes.

    The scenes of a seed are consecutive. Themes take turns, so the labels cover them, as a person's choice of
    images to label would.
    """
    pool = (root / PARTS["labeled"].split).read_text().splitlines()
    chosen = pool[seed * SCENES_PER_SEED :][:labels]
    names = f"splits/labeled/{labels}_{seed}.txt", f"splits/labeled/{labels}_{seed}_truth.txt"
    write_split(root / names[0], chosen)
    write_split(root / names[1], [*chosen, *(root / TRUTH).read_text().splitlines()])
    return names


def train(
    args: argparse.Namespace, splits: tuple[str, str], arm: str, seed: int, first: Future[Run] | None = None
) -> Run:
    """Train one arm with one seed, given its splits and first run; without `first`, train that."""
    init = args.init if first is None else str(full_model(first.result().folder, args.backbone))
    alone, everything = splits
    steps = round(args.iters * (EQUAL_TIME if arm == "labels, equal time" else 1))
    options = [
        f"data_root={args.data.resolve()}",
        f"data.labeled.split={everything if arm == 'bound' else alone}",
        f"schedule.total_iters={steps}",
        f"schedule.val_interval={steps}",
        f"seed={seed}",
        *([] if first is None else [SECOND_LR]),
        *args.cfg_options,
        *arm_options(arm, steps),
    ]
    # Runs of other scenes, initial weights or options are other runs.
    key = run_key(_request(args), args.init, options)
    folder = _folder(args) / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}_{key}"
    return Run(folder, train_s4p(CONFIG, args, options, folder, steps, init))


def _request(args: argparse.Namespace) -> Request:
    return Request(args.pool, args.unlabeled, args.val, args.size, args.world)


def _folder(args: argparse.Namespace) -> Path:
    return args.out / f"{args.labels}_{args.iters}_{file_name(args.backbone)}"


def report(args: argparse.Namespace, results: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """Table of the arms: mIoU, gain over the labels alone, its standard error and share of the bound's."""
    scores = {arm: np.array([run[MEAN] for run in runs], dtype=float) for arm, runs in results.items()}
    base, bound = scores.get("labels"), scores.get("bound")
    rows: dict[str, dict[str, str]] = {}
    for arm, values in scores.items():
        row = {MEAN: mean_and_deviation(list(values))}
        gain = values - base if base is not None else np.full(len(values), np.nan)
        error = statistics.stdev(gain) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
        reachable = (bound - base).mean() if bound is not None and base is not None else math.nan
        row["gain"] = _cell(gain.mean(), "+.1f")
        row["standard error"] = _cell(error, ".1f")
        row["share of the bound"] = _cell(100 * gain.mean() / reachable, ".0f", " %")
        row |= {
            name.removeprefix("IoU."): mean_and_deviation([run[name] for run in results[arm]])
            for name in results[arm][0]
            if name.startswith("IoU.")
        }
        rows[arm] = row
    titles = list(next(iter(rows.values())))
    columns = {title: {arm: row[title] for arm, row in rows.items()} for title in titles}
    start = "random weights" if args.init == "none" else args.init
    options = f", {' '.join(args.cfg_options)}" if args.cfg_options else ""
    head = (
        f"Scenes of seed {args.world} ({args.unlabeled} unlabeled, {args.val} for validation, of {args.size} "
        f"pixels), {args.backbone} from {start}, {args.labels} labeled scenes, "
        f"{args.iters} iterations of each of two runs{options}, {args.seeds} seeds; percent, mean ± standard "
        f"deviation"
    )
    return "\n".join([head, "", *markdown_table(columns, list(rows))]) + "\n"


def _cell(value: float, form: str, unit: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{form}}{unit}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("work_dirs/generated_scenes"))
    parser.add_argument("--data", type=Path, help="folder of the scenes (default: OUT/scenes_WORLD)")
    parser.add_argument("--world", type=int, default=0, help="seed of the scenes")
    parser.add_argument("--pool", type=int, default=200, help="labeled scenes to draw from")
    parser.add_argument("--unlabeled", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="side of a scene in pixels")
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--labels", type=int, default=10, help="number of labeled scenes")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iters", type=int, default=1000, help="of each of the two runs")
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--init", default="none", help="weights that the first runs start from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    args = parser.parse_args(argv)
    args.data = args.data or args.out / f"scenes_{args.world}"
    if args.labels > SCENES_PER_SEED:
        parser.error(f"--labels {args.labels}: a seed has at most {SCENES_PER_SEED} labeled scenes")
    if args.seeds * SCENES_PER_SEED > args.pool:
        parser.error(
            f"--pool {args.pool}: {args.seeds} seeds need {args.seeds * SCENES_PER_SEED} labeled scenes"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the scenes, run everything, print the table."""
    args = parse_args(argv)
    prepare(args.data, _request(args), usable_cpus())
    splits = [write_labeled(args.data, args.labels, seed) for seed in range(args.seeds)]
    pool = ThreadPoolExecutor(args.jobs)
    try:
        # First runs are queued first: an arm that waits for its first run occupies a worker.
        runs = {
            (FIRST, seed): pool.submit(train, args, splits[seed], FIRST, seed) for seed in range(args.seeds)
        }
        runs |= {
            (arm, seed): pool.submit(train, args, splits[seed], arm, seed, runs[FIRST, seed])
            for seed in range(args.seeds)
            for arm in args.arms
        }
        results = {
            arm: [runs[arm, seed].result().scores for seed in range(args.seeds)]
            for arm in [FIRST, *args.arms]
        }
    finally:
        pool.shutdown(cancel_futures=True)  # a run in progress has the signal, too
    text = report(args, results)
    add_table(_folder(args) / "report.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
