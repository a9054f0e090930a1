"""Logs images per second, the share of time spent waiting for data, and peak memory."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.ops.memory import peak_memory


class ThroughputHook(Hook):
    """Adds ``images_per_s``, ``data_wait`` (share of the step) and ``peak_memory_gib`` to the log.

    Memory is the allocator's peak on a GPU and the process's peak resident size on a CPU.

    Args:
        world_size: number of processes.
        window: iterations to average over.
        device: device of the model.
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
