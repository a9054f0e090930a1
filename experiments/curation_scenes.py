"""Does curation leave junk out and limit repetition? On generated scenes, where both are known.

    python -m experiments.curation_scenes [--out work_dirs/curation_scenes] [--labeled 60] [--iters 800]

Trains a segmentor on labeled scenes, and chooses from a pool of other scenes, noise, blur, blank images,
another domain, and many scenes of one kind. Writes `report.md`: how many of each kind are chosen by the
lowest entropy alone, and with quotas; and the reports of the curations. Finished parts are kept.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from experiments.report_tables import markdown_table
from experiments.training_runs import REPO, full_model, train_s4p
from s5.command import run_command, usable_cpus
from s5.curate import CurateConfig, curate
from s5.data.files import write_bytes
from s5.data.splits import Split
from s5.launch import Launch, start
from s5.training.config import load_config
from scenes.dataset import Request, write_dataset
from scenes.junk import KINDS, write_junk

CONFIG = REPO / "experiments/configs/curation_scenes.yaml"
TRAINING = REPO / "experiments/configs/generated_scenes.yaml"
SELECTIONS = {
    "entropy alone": ["cluster.count=1", "select.duplicates=keep", "select.min_deviation=0"],
    "entropy, without blanks and duplicates": ["cluster.count=1"],
    "entropy and quotas": [],
    "and limits of sharpness and similarity": [
        "select.min_sharpness=0.15",
        "select.max_sharpness=2",
        "select.min_similarity=0.8",
    ],
}


def train_segmentor(args: argparse.Namespace, data: Path) -> Path:
    """Train on the labeled scenes alone; returns the weights."""
    options = [
        f"data_root={data.resolve()}",
        "data.unlabeled.batch_size=0",
        f"schedule.total_iters={args.iters}",
        f"schedule.val_interval={args.iters}",
        f"seed={args.seed}",
    ]
    folder = args.out / "segmentor"
    train_s4p(TRAINING, args, options, folder, args.iters)
    return full_model(folder, args.backbone)


def kind_of(name: str) -> str:
    """Kind of an image of the pool, by its path."""
    return Path(name).parent.name if name.startswith("junk/") else "scenes"


def choose(args: argparse.Namespace, data: Path, weights: Path, launch: Launch, name: str) -> Counter[str]:
    """Curate the pool; returns the number of chosen patches of each kind."""
    out = args.out / "curated"
    values = [f"data_root={data}", f"out={out}", f"checkpoint={weights}", f"select.count={args.count}"]
    cfg = load_config(CurateConfig, CONFIG, [*values, *SELECTIONS[name]])
    curate(cfg, launch)
    split = Split(out / f"splits/{cfg.name}.txt", data)
    return Counter(kind_of(split.name(i)) for i in range(len(split)))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("work_dirs/curation_scenes"))
    parser.add_argument("--labeled", type=int, default=60, help="labeled scenes")
    parser.add_argument("--unlabeled", type=int, default=300, help="usual scenes in the pool")
    parser.add_argument(
        "--junk", type=int, default=50, help="images of every kind of junk; twice as many repeats"
    )
    parser.add_argument("--count", type=int, default=150, help="patches to choose")
    parser.add_argument("--iters", type=int, default=800, help="training steps of the segmentor")
    parser.add_argument("--size", type=int, default=256, help="side of a scene in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the pool, train, choose, print the table."""
    args = parse_args(argv)
    data = args.out / "data"
    write_dataset(
        data, Request(args.labeled, args.unlabeled, 40, args.size, args.seed), usable_cpus(), overwrite=True
    )
    write_junk(data / "junk", args.junk, args.size, args.seed)
    weights = train_segmentor(args, data)
    launch = start(args.device)
    found = {name: choose(args, data.resolve(), weights, launch, name) for name in SELECTIONS}
    kinds = ["scenes", *KINDS]
    pool = {"scenes": args.unlabeled, **{kind: args.junk * (2 if kind == "repeat" else 1) for kind in KINDS}}
    chance = args.count / sum(pool.values())
    columns = {
        "pool": {kind: str(pool[kind]) for kind in kinds},
        "at random": {kind: f"{chance * pool[kind]:.0f}" for kind in kinds},
        **{name: {kind: str(count[kind]) for kind in kinds} for name, count in found.items()},
    }
    head = f"{args.count} of {sum(pool.values())} patches chosen, {args.labeled} labeled scenes"
    text = "\n".join([head, "", *markdown_table(columns, kinds)]) + "\n"
    write_bytes(args.out / "report.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
