"""Stops all processes together: on a signal in order, on a non-finite loss with the names of the samples."""

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.engine.checkpoint_files import latest_checkpoint
from s5.engine.runner import unwrap

logger = logging.getLogger(__name__)

SMALLEST_SCALE = 2.0**-20  # of the loss; it begins at 2 ** 16, and each skipped step halves it
REPEAT_AFTER = 3.0  # seconds; torchrun forwards the signal that the terminal already sent


class NonFiniteLossError(RuntimeError):
    """The loss or the weights became NaN or infinite; the message names the last good checkpoint."""


class SafetyHook(Hook):
    """Checks every step, in agreement of all processes, whether to go on.

    SIGINT and SIGTERM let the step finish, save a checkpoint and leave the loop; a second signal more than
    three seconds later stops at once. The signals are handled inside ``with hook:``. A non-finite loss raises
    on all processes before anything is saved, and so do weights that infinite gradients have spoiled.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_by: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._names: list[str] = []  # samples of the newest step

    def __enter__(self) -> "SafetyHook":
        """Take over the signals (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

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
        self._names = (data_batch or {})["names"]
        loss = (outputs or {})["loss"]
        finding = None if bool(torch.isfinite(loss)) else f"loss {float(loss)}"
        if finding is None and loss_scale(runner) < SMALLEST_SCALE:
            finding = "gradients of every step not finite"
        any_bad, stop = _any_process(finding is not None, self.received or 0, loss.device)
        if any_bad:
            self._raise(runner, runner.iter + 1, finding)
        if stop:
            self.stopped_by = signal.Signals(stop)
            runner.train_loop.stop_training = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that a step with a finite loss but infinite gradients has spoiled."""
        self._check_weights(runner, checkpoint["meta"]["iter"])

    def before_val(self, runner: Runner) -> None:
        """Refuse them here too: the best weights of all validations are saved."""
        self._check_weights(runner, runner.iter)

    def _check_weights(self, runner: Runner, iteration: int) -> None:
        tensors = [value for value in unwrap(runner.model).state_dict().values() if value.is_floating_point()]
        bad = not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
        any_bad, _ = _any_process(bad, 0, tensors[0].device)
        if any_bad:
            self._raise(runner, iteration, "weights not finite" if bad else None)

    def _raise(self, runner: Runner, iteration: int, finding: str | None) -> NoReturn:
        """Stop all processes together; the main one logs what each of them found, if anything."""
        findings = [None if finding is None else f"{finding}, samples: {', '.join(self._names)}"]
        if dist.is_initialized():
            mine, findings = findings[0], findings * dist.get_world_size()
            dist.all_gather_object(findings, mine)
        for rank, text in enumerate(findings):
            if text is not None and runner.rank == 0:
                logger.error("iteration %d, rank %d: %s", iteration, rank, text)
        last = latest_checkpoint(Path(runner.work_dir))
        raise NonFiniteLossError(
            f"non-finite loss, gradients or weights at iteration {iteration}; the log names the samples. "
            f"Last good checkpoint: {last or 'none yet'}. Look at the samples, lower the learning rate, "
            f"or use precision bf16 or fp32."
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._received_at > REPEAT_AFTER:
            raise KeyboardInterrupt
        if self.received is None:
            self._received_at = time.monotonic()
            logger.warning(
                "%s: finishing this step or validation, then saving; again to stop at once",
                signal.Signals(number).name,
            )
        self.received = number


def loss_scale(runner: Runner) -> float:
    """What fp16 training multiplies the loss by; 1 otherwise."""
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _any_process(bad: bool, stop: int, device: torch.device) -> tuple[bool, int]:
    if not dist.is_initialized():
        return bad, stop
    flags = torch.tensor([int(bad), stop], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    any_bad, any_stop = flags.tolist()
    return bool(any_bad), any_stop
