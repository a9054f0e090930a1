"""S4P on the curated half of a pool of real tiles against a random half of equal size, several seeds.

    python -m experiments.curation_tiles --data DATA [--seeds 3] [--iters 500]

Labeled tiles and validation are those of experiments/real_images.py; the pool is the other tiles of these
scenes, RSSCN7 and the unlabeled EPFL tiles, in windows. The segmentor is trained on the labeled tiles alone.
Every seed has its own random half. Finished runs are kept. Writes `report.md`, and the curation's report.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from experiments.real_images import CONFIG as TRAINING
from experiments.real_images import write_splits
from experiments.real_tiles import EPFL_UNLABELED
from experiments.report_tables import markdown_table, mean_and_deviation
from experiments.training_runs import REPO, experiment_parser, full_model, train_s4p
from s5.command import run_command
from s5.curate import CurateConfig, curate
from s5.curate.folder import Run, read_shard
from s5.curate.select import TABLE
from s5.data.splits import format_line, write_split
from s5.launch import start
from s5.training.config import load_config

CONFIG = REPO / "experiments/configs/curation_tiles.yaml"


def train(args: argparse.Namespace, name: str, seed: int, options: list[str]) -> dict[str, float | None]:
    """Train one model, or take the result of a finished run."""
    common = [
        f"data_root={args.data.resolve()}",
        *(f"data.{part}.split={args.out.resolve() / part}.txt" for part in ("labeled", "val")),
        f"schedule.total_iters={args.iters}",
        f"schedule.val_interval={args.iters}",
        f"seed={seed}",
    ]
    return train_s4p(TRAINING, args, [*common, *options], args.out / f"{name}_{seed}", args.iters)


def choose(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """Curate half of the pool; returns the split and the names of all patches that can be used."""
    weights = full_model(args.out / "labels_0", args.backbone)
    values = [
        f"data_root={args.data.resolve()}",
        f"out={args.out / 'curated'}",
        f"checkpoint={weights}",
        f"labeled={args.out.resolve() / 'labeled.txt'}",
        f"sources={{dubai_rsscn7: {args.out.resolve() / 'unlabeled.txt'}, epfl: {EPFL_UNLABELED}}}",
    ]
    cfg = load_config(CurateConfig, CONFIG, values)
    launch = start(args.device)
    run = curate(cfg, launch, ("index", "score", "cluster"))
    patches = sum(len(read_shard(path, ["patch"])) for path in run.part("").shards("index"))
    cfg = load_config(CurateConfig, CONFIG, [*values, f"select.count={patches // 2}"])
    run = curate(cfg, launch, ("select", "write"))
    return run.split(cfg.name), _usable(run)


def _usable(run: Run) -> list[str]:
    table = read_shard(run.path / TABLE, ["name", "reason"]).to_pylist()
    return [row["name"] for row in table if row["reason"] in ("chosen", "quota", "entropy")]


def main(argv: list[str] | None = None) -> int:
    """Train, choose, train on both halves, print the table."""
    parser = experiment_parser(__doc__, "work_dirs/curation_tiles")
    parser.add_argument("--iters", type=int, default=500)
    args = parser.parse_args(argv)
    write_splits(args.data, args.out)
    options = [
        f"fixmatch.warmup_iters={args.iters // 2}",
        f"fixmatch.ramp_iters={args.iters * 3 // 20}",
        "fixmatch.pseudo_labels=ema",
        "fixmatch.alignment=labels",
        "fixmatch.threshold=freematch",
        "fixmatch.momentum=0.99",
    ]
    results: dict[str, list[dict[str, float | None]]] = {
        "labels alone": [],
        "random half": [],
        "curated half": [],
    }
    for seed in range(args.seeds):
        results["labels alone"].append(train(args, "labels", seed, ["data.unlabeled.batch_size=0"]))
        if seed == 0:
            curated, names = choose(args)
        order = np.random.default_rng(seed).permutation(len(names))[: len(curated.read_text().splitlines())]
        half = args.out.resolve() / f"random_{seed}.txt"
        write_split(half, [format_line(names[i]) for i in sorted(order)])
        for title, split in (("random half", half), ("curated half", curated.resolve())):
            chosen = [*options, f"data.unlabeled.split={split}"]
            results[title].append(train(args, title.split()[0], seed, chosen))
    rows = [row for row in results["labels alone"][0] if row in ("mIoU", "aAcc") or row.startswith("IoU.")]
    columns = {
        title: {row: mean_and_deviation([scores[row] for scores in runs]) for row in rows}
        for title, runs in results.items()
    }
    mix = Counter(Path(line).parts[1] for line in curated.read_text().splitlines())
    head = (
        f"{args.backbone}, {args.iters} iterations, seeds 0 to {args.seeds - 1}; percent. Chosen: {dict(mix)}"
    )
    text = "\n".join([head, "", *markdown_table(columns, rows)]) + "\n"
    (args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
