"""Progress of a run: a bar on a terminal, throughput in the log, the newest scores in a file."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from s5.compat.memory import peak_memory
from s5.training.hooks.safety import SafetyHook


class ProgressHook(Hook):
    """Shows iteration, rate, remaining time and loss of the main process when the console is a terminal."""

    priority = "LOWEST"

    def __init__(self, safety: SafetyHook) -> None:
        self._safety = safety  # has read the loss; reading it here would synchronise with the device
        self._bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        """Open the bar."""
        if runner.rank == 0 and sys.stdout.isatty():
            self._redirect = logging_redirect_tqdm(loggers=[runner.logger, logging.getLogger("s5")])
            self._redirect.__enter__()
            self._bar = tqdm(total=runner.max_iters, initial=runner.iter, unit="it", dynamic_ncols=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{self._safety.loss:.4f}", refresh=False)
            self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)


class ThroughputHook(Hook):
    """Adds `images_per_s`, `data_wait` (share of the step) and `peak_memory_gib` to the log.

    Memory is the allocator's peak on a GPU and the process's peak resident size on a CPU.

    Args:
        world_size: Number of processes.
        window: Iterations to average over.
        device: Device of the model.
    """

    priority = "NORMAL"  # with IterTimerHook, which was registered first, and before LoggerHook

    def __init__(self, world_size: int, window: int, device: torch.device) -> None:
        self.world_size = world_size
        self.device = device
        self._peak = 0  # mmengine resets the allocator's at every log line
        self.window = window

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Derive the figures from the timer's."""
        hub = runner.message_hub
        step = hub.get_scalar("train/time").mean(self.window)
        wait = hub.get_scalar("train/data_time").mean(self.window)
        hub.update_scalar("train/images_per_s", len((data_batch or {})["names"]) * self.world_size / step)
        hub.update_scalar("train/data_wait", wait / step)
        self._peak = max(self._peak, peak_memory(self.device))
        hub.update_scalar("train/peak_memory_gib", self._peak / 2**30)


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
