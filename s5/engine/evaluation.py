"""Scores of a trained model on validation images, and the files that report them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s5.data.image_io import write_image
from s5.data.labels import LabelTable
from s5.engine.config import ConfigError
from s5.engine.confusion_report import class_table, draw_confusion, write_class_csv, write_confusion_csv
from s5.engine.metrics import SegmentationMetric
from s5.engine.reports import SCORES_FILE, summary_table, write_json
from s5.ops.confusion import scores

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
    write_json(folder / SCORES_FILE, report)


def mean_scores(metric: SegmentationMetric) -> dict[str, float]:
    """The scores over all classes, in percent."""
    values = scores(metric.matrix, metric.table.background)
    return {name: 100 * value for name, value in values.items() if isinstance(value, float)}


def summary(metrics: Sequence[SegmentationMetric]) -> str:
    """A table with a line per task, and the mean over several; says where a task has no score."""
    return summary_table({metric.task: mean_scores(metric) for metric in metrics}, SUMMARY)
