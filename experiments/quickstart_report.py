"""Tabulate the quickstart's scores beside those of always predicting the most frequent class.

Usage: python -m experiments.quickstart_report work_dirs/quickstart

Prints them and writes them to `summary.md`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.report_tables import MEAN, majority_scores, markdown_table, percent
from experiments.training_runs import REPO
from s5.backbones import has_experts
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.data.loaders import resolve_split
from s5.data.splits import Split
from s5.detection.config import DetConfig
from s5.segmentation.mdf import build_tables, find_images
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config
from s5.training.reports import SCORES_FILE, SUMMARY_FILE

RUNS = {"s4p": "S4P", "supervised_longer": "labels alone", "supervised": "labels alone, half"}
CONFIG = REPO / "configs/quickstart.yaml"
MEAN_AP, APS = "mAP50", ("AP50", "AP75", "recall50")


def main(argv: list[str] | None = None) -> int:
    """Print and write the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="the quickstart's folder, with the runs in it")
    folder = parser.parse_args(argv).folder
    lines = [
        "# Quickstart",
        "",
        "Scores in percent on held-out generated scenes, after minutes of training: what the pipeline does,"
        " not how good the methods are. Those of segmentation are IoU; the last column of its tables gives"
        " every pixel the most frequent class.",
        "",
        *curation(folder),
        "",
        *pretraining(folder),
        "",
        *fine_tuning(folder / "mdf"),
        "",
        *detection(folder / "det"),
        "",
        f"Logs: train.log in each folder, or tensorboard --logdir {folder}",
    ]
    text = "\n".join(lines)
    (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\nThis summary: {folder / 'summary.md'}")
    return 0


def curation(folder: Path) -> list[str]:
    """The section on what was chosen from the pool."""
    out = folder / "curated"
    summary = json.loads((out / "curation.json").read_text(encoding="utf-8"))
    reasons = summary["counts"]["select"]["reasons"]
    split = Split((out / "splits/curated.txt").absolute(), summary["config"]["data_root"])
    names = [split.name(i) for i in range(len(split))]
    kinds = sorted({Path(name).parent.name for name in names if name.startswith("junk/")})
    junk = ", ".join(f"{sum(f'junk/{kind}/' in name for name in names)} of {kind}" for kind in kinds)
    return [
        "## Curation",
        "",
        f"{len(names)} of {sum(reasons.values())} patches chosen, by the model trained on the labeled scenes "
        f"alone; of the junk in the pool: {junk or 'none'}. Limits of contrast and sharpness are meant for"
        " blank, blurred and noisy images. Charts (foreign) and airfields (repeat) pass them, and entropy"
        " prefers what the model is certain of (docs/curation.md).",
        "",
        f"Report, for a browser: {out / 'report.html'}",
    ]


def pretraining(folder: Path) -> list[str]:
    """The section on S4P and its comparison."""
    cfg = load_config(S4PConfig, folder / "s4p" / "config.yaml")
    table = get_table(cfg.data.labels)
    split = resolve_split(cfg.data_root, cfg.data.val.split)
    labeled = resolve_split(cfg.data_root, cfg.data.labeled.split)
    columns = {title: final_scores(folder / run, table) for run, title in RUNS.items()}
    means = {title: scores[MEAN] or 0.0 for title, scores in columns.items()}
    gain = means["S4P"] - means["labels alone"]
    steps, all_steps = cfg.schedule.total_iters, load_config(S4PConfig, CONFIG).schedule.total_iters
    shortened = (
        f" Runs were shortened from {all_steps} steps, so scores are lower." if steps < all_steps else ""
    )
    return [
        f"## S4P and labeled scenes alone ({cfg.backbone})",
        "",
        f"A model trained on {len(labeled)} labeled scenes for {steps} steps goes on for as many, with the"
        f" chosen unlabeled scenes (S4P) or without; {len(split)} scenes are held out.{shortened}",
        "",
        *_table(columns, split, table),
        "",
        f"Gain of S4P over labels alone in this run: {gain:+.1f} points of mIoU. On five draws of ten other"
        " scenes, from the same encoder (EfficientNet-Lite0 of ImageNet), with runs of 1000 steps and 1000"
        " unlabeled scenes, neither junk nor curation, it was 11.4 ± 1.2 (mean and standard error; 8.3 to"
        " 15.0); on five others with 500 steps and one strong view, 5.0 ± 0.6 (3.6 to 6.7). From random"
        " weights S4P gains little: 1.8 ± 1.8 with a ViT-T (docs/method.md).",
        "",
        f"Pictures (image, pseudo-label, prediction): {folder / 's4p' / 'pictures'}",
    ]


def _introduction(
    folder: Path, title: str, weights: str, score: str, means: Mapping[str, float]
) -> list[str]:
    """Heading, number of steps and mean scores of a model for several tasks."""
    steps = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["iteration"]
    scores = ", ".join(f"{task} {percent(mean)}" for task, mean in means.items())
    return [
        f"## {title}: one model for {', '.join(means)}",
        "",
        f"{steps} steps from {weights}; every task has its own scenes and classes. {score}: {scores}.",
    ]


def fine_tuning(folder: Path) -> list[str]:
    """The section on the model for several label sets."""
    cfg = load_config(MDFConfig, folder / "config.yaml")
    report = json.loads((folder / "evaluation" / SCORES_FILE).read_text(encoding="utf-8"))
    means = {task: report[task][MEAN] for task in cfg.tasks}
    title = "MoE-MDF" if has_experts(cfg.backbone) else "MDF"
    lines = _introduction(folder, f"{title} ({cfg.backbone})", "the weights of S4P", "mIoU", means)
    for task, table in build_tables(cfg).items():
        result, (train, val) = report[task], find_images(cfg, task)
        by_class = {name: values["IoU"] for name, values in result["classes"].items()} | {MEAN: result[MEAN]}
        lines += ["", f"### {task}: {len(train)} scenes, {len(val)} held out", ""]
        lines += _table({title: by_class}, val, table)
    return [
        *lines,
        "",
        f"Pictures (image, truth, prediction) and confusion matrices: {folder / 'evaluation'}",
        f"Overlays of all tasks on the scenes that S4P is scored on: {folder / 'predictions'}",
    ]


def detection(folder: Path) -> list[str]:
    """The section on the detector for two sets of classes."""
    cfg = load_config(DetConfig, folder / "config.yaml")
    report = json.loads((folder / "evaluation" / SCORES_FILE).read_text(encoding="utf-8"))
    means = {task: report[task][MEAN_AP] for task in cfg.tasks}
    title = f"Oriented detection ({cfg.backbone})"
    lines = _introduction(folder, title, "the backbone of S4P", "mAP50", means)
    for task, result in ((task, report[task]) for task in cfg.tasks):
        classes = result["classes"]
        columns = {title: {name: percent(row[title]) for name, row in classes.items()} for title in APS}
        columns["objects"] = {name: str(row["objects"]) for name, row in classes.items()}
        lines += ["", f"### {task}", "", *markdown_table(columns, list(classes))]
    return [
        *lines,
        "",
        f"Pictures (truth in white, detections): {folder / 'evaluation' / 'pictures'}",
        f"Detections of both tasks in scenes that S4P is scored on: {folder / 'predictions'}",
    ]


def final_scores(run: Path, table: LabelTable) -> dict[str, float | None]:
    """IoU in percent by class name, and the mean, from the last validation of the run."""
    metrics = json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    return {name: metrics[f"IoU.{name}"] for name in table.classes} | {MEAN: metrics[MEAN]}


def _table(columns: Mapping[str, Mapping[str, float | None]], split: Split, table: LabelTable) -> list[str]:
    """Scores by class beside those of always predicting the most frequent class."""
    majority, baseline = majority_scores(split, table)
    rows = [*table.classes, MEAN]
    texts = {title: {row: percent(values[row]) for row in rows} for title, values in columns.items()}
    texts[f"all '{majority}'"] = {row: percent(baseline[row]) for row in rows}
    return markdown_table(texts, rows)


if __name__ == "__main__":
    sys.exit(main())
