"""Stops all processes together: on a signal in order, on a non-finite loss with the names of the samples."""

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.engine.checkpoint_files import latest_checkpoint

logger = logging.getLogger(__name__)

REPEAT_AFTER = 3.0  # seconds; torchrun forwards the signal that the terminal already sent


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the samples and the last good checkpoint."""


class SafetyHook(Hook):
    """Checks every step, in agreement of all processes, whether to go on.

    SIGINT and SIGTERM let the step finish, save a checkpoint and leave the loop; a second signal more than
    three seconds later stops at once. A non-finite loss raises on all processes before anything is saved.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_by: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Take over the signals (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Key the random numbers of the step (dropout, drop path) by seed, step and process.

        So nothing random has to be stored in checkpoints, and a resumed run draws what the uninterrupted one
        would.
        """
        key = (runner.seed * 1_000_003 + runner.iter) * 65_537 + runner.rank
        torch.manual_seed(key % 2**63)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Agree on stopping."""
        loss = (outputs or {})["loss"]
        bad = not bool(torch.isfinite(loss))
        any_bad, stop = _any_process(bad, self.received or 0, loss.device)
        if bad:
            names = ", ".join((data_batch or {})["names"])
            logger.error(
                "rank %d: loss %s at iteration %d, samples: %s", runner.rank, loss, runner.iter + 1, names
            )
        if any_bad:
            last = latest_checkpoint(Path(runner.work_dir))
            raise NonFiniteLossError(
                f"non-finite loss at iteration {runner.iter + 1}; the samples are named in the log. "
                f"Last good checkpoint: {last or 'none yet'}. Look at the samples, lower the learning rate, "
                f"or use precision bf16 or fp32."
            )
        if stop:
            self.stopped_by = signal.Signals(stop)
            runner.train_loop.stop_training = True

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._received_at > REPEAT_AFTER:
            raise KeyboardInterrupt
        if self.received is None:
            self._received_at = time.monotonic()
            logger.warning(
                "%s: finishing this step, then saving; again to stop at once", signal.Signals(number).name
            )
        self.received = number


def _any_process(bad: bool, stop: int, device: torch.device) -> tuple[bool, int]:
    if not dist.is_initialized():
        return bad, stop
    flags = torch.tensor([int(bad), stop], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    any_bad, any_stop = flags.tolist()
    return bool(any_bad), any_stop
