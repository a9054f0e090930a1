"""Writes the last validation's scores to ``final_metrics.json`` and repeats one that was cut off."""

import json
import math
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner

SUMMARY_FILE = "final_metrics.json"


class SummaryHook(Hook):
    """Keeps the scores (percent) of the newest validation in a file that scripts can read."""

    priority = "LOW"

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the scores of this validation."""
        if runner.rank == 0:
            path = Path(runner.work_dir) / SUMMARY_FILE
            known = {k: None if math.isnan(v) else v for k, v in (metrics or {}).items()}  # JSON has no NaN
            text = json.dumps({"iteration": runner.iter, **known}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")

    def before_train(self, runner: Runner) -> None:
        """Validate first where the checkpoint to go on from was written just before a validation.

        Whether the run was killed in that validation or later, its scores and the choice of the best weights
        are not in the checkpoint.
        """
        loop = runner.train_loop
        if loop.iter and (loop.iter % loop.val_interval == 0 or loop.iter == loop.max_iters):
            runner.val_loop.run()
