"""Puts the quickstart's runs side by side in a table, on the console and in ``summary.md``.

Usage: python scripts/quickstart_report.py work_dirs/quickstart
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from s5.data.build import resolve_split
from s5.data.image_io import read_mask
from s5.data.labels import LabelTable, get_table
from s5.data.splits import Split
from s5.engine.config import load_config
from s5.engine.hooks.summary import SUMMARY_FILE
from s5.engine.s4p_config import S4PConfig
from s5.ops.confusion import confusion_matrix, scores

MEAN = "mIoU"
RUNS = {"s4p": "S4P", "supervised": "supervised only"}


def main(argv: list[str] | None = None) -> int:
    """Print and write the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the quickstart's folder, with the runs in it")
    folder = parser.parse_args(argv).folder

    cfg = load_config(S4PConfig, folder / "s4p" / "config.yaml")
    table = get_table(cfg.data.labels)
    columns = {title: read_scores(folder / run, table) for run, title in RUNS.items()}
    majority, baseline = majority_scores(resolve_split(cfg.data_root, cfg.data.val.split), table)
    columns[f"all '{majority}'"] = baseline

    text = "\n".join(
        [
            "# Quickstart",
            "",
            f"IoU in percent on the held-out scenes after {cfg.schedule.total_iters} steps; the last column"
            " gives every pixel the most frequent class.",
            "",
            *markdown_table(columns, [*table.classes, MEAN]),
            "",
            f"Pictures (image, pseudo-label, prediction): {folder / 's4p' / 'pictures'}",
            f"Logs: {folder / 's4p' / 'train.log'}, or tensorboard --logdir {folder}",
        ]
    )
    (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\nThis summary: {folder / 'summary.md'}")
    return 0


def read_scores(run: Path, table: LabelTable) -> dict[str, float]:
    """IoU in percent by class name, and the mean, as the run's last validation wrote them."""
    metrics = json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    keys = {name: f"IoU.{name}" for name in table.classes} | {MEAN: MEAN}
    return {name: math.nan if metrics[key] is None else metrics[key] for name, key in keys.items()}


def majority_scores(split: Split, table: LabelTable) -> tuple[str, dict[str, float]]:
    """The most frequent class of a split, and the scores of predicting it everywhere."""
    masks = [table.encode(read_mask(sample.mask), sample.mask).reshape(-1) for sample in split if sample.mask]
    target = torch.cat([torch.from_numpy(mask) for mask in masks])
    majority = int(torch.bincount(target, minlength=table.num_classes)[: table.num_classes].argmax())
    result = scores(confusion_matrix(torch.full_like(target, majority), target, table.num_classes))
    by_class = dict(zip(table.classes, result["IoU"], strict=True))
    percent = {name: 100 * value for name, value in (by_class | {MEAN: result[MEAN]}).items()}
    return table.classes[majority], percent


def markdown_table(columns: dict[str, dict[str, float]], rows: list[str]) -> list[str]:
    """Lines of a table that reads well both raw and rendered."""
    first = max(map(len, rows))
    widths = {title: max(len(title), len("absent")) for title in columns}
    lines = [
        f"| {'':<{first}} | " + " | ".join(f"{title:>{width}}" for title, width in widths.items()) + " |",
        f"| {'-' * first} | " + " | ".join(f"{'-' * (width - 1)}:" for width in widths.values()) + " |",
    ]
    for row in rows:
        cells = (f"{_number(values[row]):>{widths[title]}}" for title, values in columns.items())
        lines.append(f"| {row:<{first}} | " + " | ".join(cells) + " |")
    return lines


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
