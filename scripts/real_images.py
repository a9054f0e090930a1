"""S4P against supervised-only training at equal steps, on real tiles, several seeds.

    python scripts/real_images.py --data DATA [--seeds 3] [--iters 500]

Labeled: two tiles of five Dubai scenes; unlabeled: their other tiles and RSSCN7; validation: the sixth scene.
Runs that are finished are kept, interrupted ones go on. Writes `report.md` with means and standard
deviations.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / "configs/real_images.yaml"
HELD_OUT_SCENE = "tile2"
LABELED_TILES = ("003", "008")
METHODS = {"S4P": [], "supervised": ["data.unlabeled.batch_size=0"]}


def write_splits(data: Path, out: Path) -> None:
    """Write `labeled.txt`, `unlabeled.txt` and `val.txt`, by scene so that none is on both sides."""
    splits: dict[str, list[str]] = {"labeled": [], "unlabeled": [], "val": []}
    for image in sorted((data / "seg/dubai/images").glob("*.jpg")):
        scene, number = image.stem.split("_")
        path = image.relative_to(data).as_posix()
        pair = f"{path} seg/dubai/masks/{image.stem}.png"
        if scene == HELD_OUT_SCENE:
            splits["val"].append(pair)
        elif number in LABELED_TILES:
            splits["labeled"].append(pair)
        else:
            splits["unlabeled"].append(path)
    splits["unlabeled"] += sorted(
        p.relative_to(data).as_posix() for p in data.glob("unlabeled/rsscn7/*/*.jpg")
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        (out / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, method: str, seed: int) -> dict[str, float]:
    """Train one model, or take the result of a finished run."""
    work_dir = args.out / f"{args.backbone}_{args.iters}" / f"{method.lower()}_{seed}"
    metrics = work_dir / "final_metrics.json"
    if not metrics.exists() or json.loads(metrics.read_text())["iteration"] != args.iters:
        splits = [
            f"data.{name}.split={args.out.resolve() / name}.txt" for name in ("labeled", "unlabeled", "val")
        ]
        schedule = [
            f"schedule.total_iters={args.iters}",
            f"schedule.val_interval={args.iters}",
            f"seed={seed}",
        ]
        options = [f"data_root={args.data.resolve()}", *splits, *schedule, *METHODS[method]]
        command = [sys.executable, str(REPO / "S4_Pretrain/train.py"), "--config", str(CONFIG)]
        command += ["--backbone", args.backbone, "--init", "none", "--device", args.device]
        command += ["--work-dir", str(work_dir), "--resume", "--cfg-options", *options]
        subprocess.run(command, check=True)
    return json.loads(metrics.read_text())


def report(args: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> str:
    """Table of mean ± standard deviation over the seeds, percent."""
    first = next(iter(results.values()))[0]
    rows = ["mIoU", "aAcc", *(name for name in first if name.startswith("IoU."))]
    lines = [f"{args.backbone}, {args.iters} iterations, seeds 0 to {args.seeds - 1}; percent", ""]
    lines += [f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for row in rows:
        cells = [_mean_and_deviation([run[row] for run in runs]) for runs in results.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    """Write the splits, run everything, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with seg/dubai and unlabeled/rsscn7")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/real_images"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iters", type=int, default=500)
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    write_splits(args.data, args.out)
    results: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in range(args.seeds):
        for method, runs in results.items():
            runs.append(run(args, method, seed))
    text = report(args, results)
    (args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
