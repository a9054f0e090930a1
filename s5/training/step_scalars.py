"""Losses and other scalars of training steps, read from the device together when a log line is due."""

import math
from typing import Any

import numpy as np
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.runner import LogProcessor, Runner
from torch import Tensor


class StepScalarsHook(RuntimeInfoHook):
    """Collects the outputs of steps on the device; mmengine's hook would synchronise for every value.

    Losses that are not finite, which are those of skipped steps, are left out of the means.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs of the step, on the device."""
        self._steps.append({"grad_norm": runner.optim_wrapper.grad_norm, **(outputs or {})})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Complete the message hub, which is part of the checkpoint."""
        self.flush(runner)

    def flush(self, runner: Runner) -> None:
        """Move the values of all steps so far to the message hub."""
        if not self._steps:
            return
        values = torch.stack([value.reshape(()).float() for step in self._steps for value in step.values()])
        named = zip((name for step in self._steps for name in step), values.tolist(), strict=True)
        for name, value in named:
            if "loss" in name and not math.isfinite(value):
                runner.message_hub.update_scalar(f"train/{name}", 0.0, count=0)
            else:
                runner.message_hub.update_scalar(f"train/{name}", value)
        self._steps.clear()


class StepLogProcessor(LogProcessor):
    """Formats log lines from the values that a :class:`StepScalarsHook` collects.

    Args:
        scalars: the hook.
        interval: steps between log lines, and the number of steps a line averages over.
    """

    def __init__(self, scalars: StepScalarsHook, interval: int) -> None:
        means = r".*(loss|time|confident).*"
        super().__init__(window_size=interval, by_epoch=False, mean_pattern=means)
        self.scalars = scalars

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Scalars by name, and the log line."""
        self.scalars.flush(runner)
        with np.errstate(invalid="ignore"):  # a mean is NaN where every step of the window was skipped
            return super().get_log_after_iter(runner, batch_idx, mode)
