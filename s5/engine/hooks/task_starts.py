"""Lets tasks of a multi-dataset run start later than others."""

import logging
from typing import cast

from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.sampler import ValidationSampler
from s5.engine.runner import S5Runner, unwrap
from s5.models.mdf import MultiDataset

logger = logging.getLogger(__name__)


class TaskStartHook(Hook):
    """Before a task starts, its weights are frozen and its validation images are left out.

    Its training images are left out by the sampler, so that it costs nothing.

    Args:
        starts: first step of each task.
        validation: the sampler of the validation images.
    """

    priority = "VERY_HIGH"

    def __init__(self, starts: dict[str, int], validation: ValidationSampler) -> None:
        self.starts = starts
        self.validation = validation

    def started(self, step: int) -> set[str]:
        """Tasks that take part in ``step``."""
        return {task for task, first in self.starts.items() if step >= first}

    def before_train(self, runner: Runner) -> None:
        """Set up the first step, before a validation that may be due on resume."""
        self._follow(cast(S5Runner, runner), max(runner.iter - 1, 0))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Start tasks whose time has come."""
        self._follow(cast(S5Runner, runner), runner.iter)

    def _follow(self, runner: S5Runner, step: int) -> None:
        model = cast(MultiDataset, unwrap(runner.model))
        tasks = self.started(step)
        self.validation.active = tasks
        if tasks == model.active:
            return
        new = sorted(tasks - model.active)
        if new:
            logger.info("step %d: %s joined", step, ", ".join(new))
        model.activate(tasks)
        runner.rewrap_model()
