"""Writes the last validation's scores to ``final_metrics.json`` and makes sure there is one at the end."""

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
        runner.message_hub.update_info("validated_iter", runner.iter)
        if runner.rank == 0:
            path = Path(runner.work_dir) / SUMMARY_FILE
            known = {k: None if math.isnan(v) else v for k, v in (metrics or {}).items()}  # JSON has no NaN
            text = json.dumps({"iteration": runner.iter, **known}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")

    def after_train(self, runner: Runner) -> None:
        """Validate the final weights if a run was killed in its last validation and resumed at its end."""
        validated = runner.message_hub.get_info("validated_iter", None)
        if validated != runner.iter and not runner.train_loop.stop_training:
            runner.val_loop.run()
