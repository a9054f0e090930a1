"""Hooks of the segmentation trees: monitoring of S4P's pseudo-labels, and tasks that start late."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.label_table import LabelTable
from s5.data.sampler import ValidationSampler
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.multi_dataset import MultiDataset
from s5.training.hooks.pictures import colored, legend, rgb, write_sheet
from s5.training.resume import ResumableHook
from s5.training.runner import S5Runner, unwrap

logger = logging.getLogger(__name__)

ROWS = 4  # of a sheet of views


class CollapseWatch:
    """Warns when one class dominates the pseudo-labels, and when a class disappears from them.

    The start and the end of either condition are logged once.

    Args:
        classes: Names of the classes.
        share: A class dominates if it has more than this share of a report's confident pixels.
        missing_steps: A class that occurs in the labels is missing after this many steps without a confident
            pixel, rounded up to full reports.
        section: Section of the method in the configuration, for messages.

    Attributes:
        dominant: Index of the dominant class, or None.
        missing: Indices of the missing classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        share: float = 0.95,
        missing_steps: int = 1000,
        section: str = "fixmatch",
    ) -> None:
        self.classes = tuple(classes)
        self.section = section
        self.share = share
        self.missing_steps = missing_steps
        self.dominant: int | None = None
        self.missing: set[int] = set()
        self._labeled = [False] * len(self.classes)  # whether the class has occurred in the labels so far
        self._steps_without = [0] * len(self.classes)

    def report(self, pseudo: Sequence[float], labeled: Sequence[float], steps: int) -> None:
        """Check the numbers of confident and labeled pixels of each class in the last `steps` steps."""
        self._report_dominance(pseudo, labeled, steps)
        self._report_missing(pseudo, labeled, steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming."""
        return {
            "dominant": self.dominant,
            "missing": sorted(self.missing),
            "labeled": self._labeled,
            "steps_without": self._steps_without,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self.dominant, self.missing = state["dominant"], set(state["missing"])
        self._labeled, self._steps_without = list(state["labeled"]), list(state["steps_without"])

    def _report_dominance(self, pseudo: Sequence[float], labeled: Sequence[float], steps: int) -> None:
        total = sum(pseudo)
        if total == 0 or len(self.classes) < 2:
            return
        largest = max(range(len(pseudo)), key=pseudo.__getitem__)
        share = pseudo[largest] / total
        before, self.dominant = self.dominant, largest if share > self.share else None
        if self.dominant is not None and self.dominant != before:
            logger.warning(
                "pseudo-labels collapse: %s has %.1f %% of the confident pixels of the last %d steps, and "
                "%.1f %% of the labeled ones (%s.collapse.share = %g). Unless the images are that "
                "imbalanced, start from weights trained on the labels alone (--init, or %s.warmup_iters), "
                "lower optim.lr, or choose another %s.threshold",
                self.classes[largest],
                100 * share,
                steps,
                100 * labeled[largest] / max(sum(labeled), 1),
                self.section,
                self.share,
                self.section,
                self.section,
            )
        elif self.dominant is None and before is not None:
            logger.info(
                "pseudo-labels: the collapse is over, %s has %.1f %% of the confident pixels",
                self.classes[largest],
                100 * share,
            )

    def _report_missing(self, pseudo: Sequence[float], labeled: Sequence[float], steps: int) -> None:
        missing = set()
        for i, (confident, of_labels) in enumerate(zip(pseudo, labeled, strict=True)):
            self._labeled[i] |= of_labels > 0
            self._steps_without[i] = (
                0 if confident or not self._labeled[i] else self._steps_without[i] + steps
            )
            if self._steps_without[i] >= self.missing_steps:
                missing.add(i)
        if new := missing - self.missing:
            logger.warning(
                "pseudo-labels: no confident pixel of %s in the last %d steps, although it occurs in the "
                "labels (%s.collapse.missing_steps = %d). Choose a threshold per class (%s.threshold), "
                "or add labeled images that show it",
                self._names(new),
                max(self._steps_without[i] for i in new),
                self.section,
                self.missing_steps,
                self.section,
            )
        if back := self.missing - missing:
            logger.info("pseudo-labels: there are confident pixels of %s again", self._names(back))
        self.missing = missing

    def _names(self, classes: set[int]) -> str:
        return ", ".join(self.classes[i] for i in sorted(classes))


class PseudoLabelHook(ResumableHook):
    """Logs the class shares of confident pseudo-labels, and warns when they collapse.

    The model counts pixels on the device. The counts are summed over all processes and read every `interval`
    iterations.

    Args:
        watch: Warns about a collapse.
        interval: Iterations between log lines.
    """

    priority = "NORMAL"
    key = "pseudo_labels"

    def __init__(self, watch: CollapseWatch, interval: int) -> None:
        self.watch = watch
        self.interval = interval
        self._steps = 0  # since the last log line
        self._resumed: list[list[float]] | None = None  # pixels counted in these steps before a resume

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Log if a report is due."""
        self._steps += 1
        if not self.every_n_train_iters(runner, self.interval):
            return
        pseudo, labeled = self._counts(runner)
        steps, self._steps, self._resumed = self._steps, 0, None
        cast(FixMatch, unwrap(runner.model)).class_counts = None
        scalars = {}
        if total := sum(pseudo):
            shares = {name: count / total for name, count in zip(self.watch.classes, pseudo, strict=True)}
            text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.001)
            logger.info("confident pseudo-labels: %s", text)
            scalars = {f"pseudo/{name}": share for name, share in shares.items()}
            scalars["pseudo_collapse/largest_share"] = max(shares.values())
        scalars |= cast(FixMatch, unwrap(runner.model)).threshold.scalars(self.watch.classes)
        self.watch.report(pseudo, labeled, steps)
        scalars["pseudo_collapse/missing_classes"] = len(self.watch.missing)
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def state_dict(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Return the counts since the last log line and the state of the watch."""
        return {"counts": self._counts(runner), "steps": self._steps, "watch": self.watch.state_dict()}

    def load_state_dict(self, runner: Runner, iteration: int, state: dict[str, Any]) -> None:
        """Restore the counts and the state of the watch."""
        self._resumed, self._steps = state["counts"], state["steps"]
        self.watch.load_state_dict(state["watch"])

    def _counts(self, runner: Runner) -> list[list[float]]:
        """Confident and labeled pixels by class since the last log line, summed over all processes."""
        model = cast(FixMatch, unwrap(runner.model))
        counts = torch.zeros(2, model.num_classes, dtype=torch.float64, device=model.device)
        if model.class_counts is not None:
            counts += model.class_counts
        if dist.is_initialized():
            dist.all_reduce(counts)
        resumed = torch.tensor(self._resumed or 0, dtype=torch.float64)
        return (counts.cpu() + resumed).tolist()


class ViewsHook(Hook):
    """Draws weak view, strong view, confident pseudo-labels and prediction on the strong view.

    The pictures show the newest training batch and go to `work_dir/pictures/unlabeled_<iter>.jpg` and
    TensorBoard.

    Args:
        table: Label table.
    """

    priority = "LOW"

    def __init__(self, table: LabelTable) -> None:
        self.table = table
        self._batch: dict[str, Any] | None = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the newest batch for the next validation."""
        self._batch = data_batch

    def before_val(self, runner: Runner) -> None:
        """Draw the newest batch."""
        model = cast(FixMatch, unwrap(runner.model))
        if runner.rank != 0 or self._batch is None or model.lambda_u == 0:
            return
        views = {name: value.cpu() for name, value in model.preview(self._batch, ROWS).items()}
        rows = [
            [rgb(weak), rgb(strong), colored(pseudo, self.table), colored(prediction, self.table)]
            for weak, strong, pseudo, prediction in zip(
                views["weak"], views["strong"], views["pseudo"], views["prediction"], strict=True
            )
        ]
        titles = ("weak view", "strong view", "its pseudo-labels", "its prediction")
        write_sheet(runner, "unlabeled", rows, titles, legend(self.table, "no pseudo-label"))


class TaskStartHook(Hook):
    """Freezes the weights and leaves out the validation images of tasks that have not started.

    Their training images are left out by the training sampler.

    Args:
        starts: First step of each task.
        validation: Sampler of the validation images.
    """

    priority = "VERY_HIGH"

    def __init__(self, starts: dict[str, int], validation: ValidationSampler) -> None:
        self.starts = starts
        self.validation = validation

    def started(self, step: int) -> set[str]:
        """Return the tasks that take part in `step`."""
        return {task for task, first in self.starts.items() if step >= first}

    def before_train(self, runner: Runner) -> None:
        """Set up the first step, before a validation that may be due on resume."""
        self._follow(cast(S5Runner, runner), max(runner.iter - 1, 0))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Start the tasks that are due."""
        self._follow(cast(S5Runner, runner), runner.iter)

    def _follow(self, runner: S5Runner, step: int) -> None:
        model = cast(MultiDataset, unwrap(runner.model))
        tasks = self.started(step)
        self.validation.active = tasks
        if tasks == model.active:
            return
        new = sorted(tasks - model.active)
        if new:
            logger.info("step %d: %s started", step, ", ".join(new))
        model.activate(tasks)
        runner.rewrap_model()
