"""Lets the teacher follow, and logs which classes the confident pseudo-labels have."""

import logging
from typing import cast

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.engine.runner import unwrap
from s5.models.fixmatch import FixMatch

logger = logging.getLogger(__name__)


class PseudoLabelHook(Hook):
    """Updates an EMA teacher after every step, and logs the class shares of pseudo-labels.

    Args:
        classes: names of the classes.
        interval: iterations between log lines.
    """

    priority = "NORMAL"

    def __init__(self, classes: tuple[str, ...], interval: int) -> None:
        self.classes = classes
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Follow, and now and then log."""
        model = cast(FixMatch, unwrap(runner.model))
        model.after_step()
        if not self.every_n_train_iters(runner, self.interval):
            return
        taken = model.take_pseudo_counts()
        if taken is None:
            return
        if dist.is_initialized():
            dist.all_reduce(taken)
        counts = taken.tolist()
        total = sum(counts)
        if total == 0:
            return
        shares = {name: count / total for name, count in zip(self.classes, counts, strict=True)}
        runner.visualizer.add_scalars({f"pseudo/{k}": v for k, v in shares.items()}, step=runner.iter + 1)
        text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.001)
        logger.info("confident pseudo-labels: %s", text)
