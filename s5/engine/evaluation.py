"""Scores of a trained model on validation images, and the files that report them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.build import stop_workers
from s5.data.image_io import write_bytes, write_image
from s5.data.labels import LabelTable
from s5.engine.config import ConfigError
from s5.engine.confusion_report import class_table, draw_confusion, write_class_csv, write_confusion_csv
from s5.engine.launch import Launch
from s5.engine.log_backends import build_visualizer
from s5.engine.metrics import SegmentationMetric
from s5.engine.runner import S5Runner, log_options
from s5.models.segmentation_model import SegmentationModel
from s5.ops.confusion import scores

SCORES_FILE = "scores.json"
SUMMARY = ("mIoU", "mIoU_no_background", "mF1", "mAcc", "aAcc")


def check_classes(trained: Mapping[str, LabelTable], data: Mapping[str, LabelTable]) -> None:
    """Refuse data of other tasks or classes than a model was trained for.

    Raises:
        ConfigError: names the task and both lists.
    """
    lacking = [task for task in data if task not in trained]
    if lacking:
        raise ConfigError(
            f"the checkpoint has no task {', '.join(lacking)}; it has {', '.join(trained)}. Choose some of "
            f"them with --tasks"
        )
    for task, table in data.items():
        theirs, ours = trained[task].classes, table.classes
        if theirs != ours:
            raise ConfigError(
                f"task {task}: the checkpoint was trained for the classes {', '.join(theirs)}, the "
                f"configuration has {', '.join(ours)}"
            )


def run_validation(
    launch: Launch,
    work_dir: Path,
    name: str,
    model: SegmentationModel,
    loader: DataLoader,
    metrics: Sequence[SegmentationMetric],
    hooks: Sequence[Hook],
    log_interval: int,
) -> None:
    """Predict the validation images and let metrics and hooks see them."""
    runner = S5Runner(
        launch=launch,
        model=model,
        work_dir=str(work_dir),
        val_dataloader=loader,
        val_cfg={},
        val_evaluator=Evaluator(metrics),
        custom_hooks=list(hooks),
        **log_options(log_interval),
        visualizer=build_visualizer(work_dir, name),
    )
    runner.val()
    stop_workers(loader)


def write_reports(
    folder: Path, metrics: Sequence[SegmentationMetric], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the scores of every task: ``scores.json``, and per task two CSV files and a picture.

    Args:
        folder: where to.
        metrics: after their evaluation.
        settings: what was evaluated and how, by task; goes into ``scores.json``.
    """
    report = {}
    for metric in metrics:
        matrix, table = metric.matrix, metric.table
        means = mean_scores(metric)
        report[metric.task] = {
            **settings[metric.task],
            **means,
            "classes": class_table(matrix, table.classes),
        }
        write_class_csv(folder / f"{metric.task}_classes.csv", matrix, table.classes)
        write_confusion_csv(folder / f"{metric.task}_confusion.csv", matrix, table.classes)
        title = f"{metric.task}: mIoU {means['mIoU']:.2f}, per true class in percent"
        picture = draw_confusion(matrix, table.classes, title)
        write_image(folder / f"{metric.task}_confusion.png", picture)
    text = json.dumps(_without_nan(report), indent=1, ensure_ascii=False)
    write_bytes(folder / SCORES_FILE, f"{text}\n".encode())


def mean_scores(metric: SegmentationMetric) -> dict[str, float]:
    """The scores over all classes, in percent."""
    values = scores(metric.matrix, metric.table.background)
    return {name: 100 * value for name, value in values.items() if isinstance(value, float)}


def summary(metrics: Sequence[SegmentationMetric]) -> str:
    """A table with a line per task, and the mean over several; says where a task has no score."""
    rows = {metric.task: mean_scores(metric) for metric in metrics}
    columns = [name for name in SUMMARY if any(name in row for row in rows.values())]
    notes = []
    if len(rows) > 1:
        shared = [name for name in columns if all(name in row for row in rows.values())]
        known = {name: [row[name] for row in rows.values() if not math.isnan(row[name])] for name in shared}
        counts = {name: len(values) for name, values in known.items() if len(values) < len(rows)}
        notes = [f"{name} of {count} of {len(rows)} tasks" for name, count in counts.items()]
        rows["mean"] = {name: fmean(values) if values else math.nan for name, values in known.items()}
    width = max(map(len, rows)) + 2
    lines = [f"{'task':<{width}}" + "".join(f"{name:>{len(name) + 3}}" for name in columns)]
    for task, row in rows.items():
        cells = (f"{row[name]:.2f}" if name in row else "" for name in columns)
        lines.append(
            f"{task:<{width}}"
            + "".join(f"{c:>{len(name) + 3}}" for c, name in zip(cells, columns, strict=True))
        )
    if notes:
        lines.append(f"(mean where there is a score: {', '.join(notes)})")
    return "\n".join(lines)


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """JSON has no NaN: an undefined score is null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
