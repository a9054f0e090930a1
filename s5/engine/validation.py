"""A run of validation alone: the images go through a trained model, metrics and hooks see the results."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.data.build import stop_workers
from s5.data.labels import LabelTable
from s5.data.mask_survey import refuse_together, require_readable_together
from s5.data.splits import Split
from s5.engine.launch import Launch, main_process_first
from s5.engine.log_backends import build_visualizer
from s5.engine.runner import S5Runner, log_options
from s5.models.task_model import TaskModel


def check_codings(splits: Sequence[tuple[Split, LabelTable]], launch: Launch) -> None:
    """Refuse splits of which some masks cannot be read beside the others, before they are scored.

    Raises:
        DataError: naming the first of them.
    """
    with main_process_first(launch) as first:
        if first:
            for split, table in splits:
                masks = [sample.mask for sample in split if sample.mask is not None]
                require_readable_together(refuse_together(masks, table))


def run_validation(
    launch: Launch,
    work_dir: Path,
    name: str,
    model: TaskModel,
    loader: DataLoader,
    metrics: Sequence[BaseMetric],
    hooks: Sequence[Hook],
    log_interval: int,
) -> dict[str, float]:
    """Predict the validation images and let metrics and hooks see them; returns all scores."""
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
    scores = runner.val()
    stop_workers(loader)
    return scores
