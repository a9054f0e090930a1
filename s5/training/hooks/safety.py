"""Stops all processes together: cleanly on a signal, and when too many steps were not finite."""

import logging
import math
import signal
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.distributed as dist
from mmengine.runner import Runner

from s5.data.worker_pool import waiting_since
from s5.errors import SignalInterrupt, UserError
from s5.training.guarded_step import GuardedOptimWrapper, SkippedSteps, StepOutcome, StepReport
from s5.training.resume import ResumableHook, latest_checkpoint
from s5.training.runner import unwrap

logger = logging.getLogger(__name__)

SMALLEST_SCALE = 2.0**-20  # of the loss; it begins at 2 ** 16, and each step it skips halves it
REPEAT_AFTER = 3.0  # seconds; torchrun forwards the signal that the terminal already sent
BATCH_GRACE = 10.0  # seconds that a batch may take after a signal, before the run ends without it


class NonFiniteLossError(UserError, RuntimeError):
    """Too many losses or gradients, or the weights, are not finite; names the last good checkpoint."""


class _Step(NamedTuple):
    iteration: int  # from 1
    names: list[str]  # of the samples of this process
    report: StepReport


class SafetyHook(ResumableHook):
    """Checks every step, in agreement of all processes, whether to go on.

    SIGINT and SIGTERM let the step finish, save a checkpoint and leave the loop; a second signal more than
    three seconds later stops at once, by a :class:`SignalInterrupt`. So does the first one if the step or
    validation waits for a batch that does not come within :data:`BATCH_GRACE`. The signals are handled inside
    `with hook:`.

    A step whose loss or gradients are not finite has had no effect
    (:class:`~s5.training.guarded_step.GuardedOptimWrapper`). Here it is logged with the names of its samples
    and counted. Too many of them raise on all processes, and so do weights that are not finite, before
    anything is saved.

    Args:
        skipped: Counter of skipped steps, which decides how many are too many.
        delay: Steps until the host reads the outcome of a step. With 1, a GPU works on the next step while
            the host waits for the one before, and signals take effect a step later. Before anything is saved
            or validated, the outcomes of all steps are read.

    Attributes:
        loss: Loss of this process in the newest step whose outcome was read.
    """

    priority = "VERY_HIGH"
    key = "skipped_steps"

    def __init__(self, skipped: SkippedSteps | None = None, delay: int = 0) -> None:
        self.skipped = skipped or SkippedSteps()
        self.delay = delay
        self.received: int | None = None
        self.stopped_by: signal.Signals | None = None
        self.loss = 0.0
        self._received_at = 0.0
        self._stop = 0  # signal that all processes know of
        self._previous: dict[int, Any] = {}
        self._steps: deque[_Step] = deque()
        self._names: list[str] = []  # samples of the newest step whose outcome was read

    def __enter__(self) -> "SafetyHook":
        """Take over the signals (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def before_train(self, runner: Runner) -> None:
        """Let every step ask for signals, and log the count of skipped steps from the start."""
        cast(GuardedOptimWrapper, runner.optim_wrapper).stop_request = lambda: self.received or 0
        self._log_count(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Judge the step, or the one before it, and stop if any process has received a signal."""
        report = cast(GuardedOptimWrapper, runner.optim_wrapper).report
        self._steps.append(_Step(runner.iter + 1, (data_batch or {})["names"], report))
        self._review(runner, self.delay)
        if self._stop:  # not in other methods: here the step's checkpoint is still to be written
            self.stopped_by = signal.Signals(self._stop)
            runner.train_loop.stop_training = True

    def after_train(self, runner: Runner) -> None:
        """Judge the last steps."""
        self._review(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not finite."""
        self._review(runner)
        self._check_weights(runner, checkpoint["meta"]["iter"])

    def state_dict(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Counts of skipped steps."""
        return self.skipped.state_dict()

    def load_state_dict(self, runner: Runner, iteration: int, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.skipped.load_state_dict(state)

    def before_val(self, runner: Runner) -> None:
        """Refuse such weights here too: the best weights of all validations are saved."""
        self._review(runner)
        self._check_weights(runner, runner.iter)

    def _review(self, runner: Runner, leave: int = 0) -> None:
        """Judge all steps but the newest `leave`."""
        while len(self._steps) > leave:
            step = self._steps.popleft()
            self._judge(runner, step, step.report.read())

    def _judge(self, runner: Runner, step: _Step, outcome: StepOutcome) -> None:
        self.loss, self._names = outcome.loss, step.names
        if outcome.fault:
            for finding in self._findings(runner, _own_finding(outcome), otherwise="gradients not finite"):
                logger.warning("skipped iteration %d, %s", step.iteration, finding)
        too_many = self.skipped.count(step.iteration, outcome.fault)
        if outcome.fault:
            self._log_count(runner)
        if too_many is not None:
            self._raise(runner, step.iteration, f" {too_many}.")
        if outcome.scale < SMALLEST_SCALE:
            self._log_errors(runner, step.iteration, "gradients of every step not finite")
            self._raise(runner, step.iteration)
        self._stop = self._stop or outcome.stop

    def _log_count(self, runner: Runner) -> None:
        runner.message_hub.update_scalar("train/skipped_steps", self.skipped.total)

    def _check_weights(self, runner: Runner, iteration: int) -> None:
        tensors = [value for value in unwrap(runner.model).state_dict().values() if value.is_floating_point()]
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        bad = (~finite).int()
        if dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if bad:
            self._log_errors(runner, iteration, None if finite else "weights not finite")
            self._raise(runner, iteration)

    def _log_errors(self, runner: Runner, iteration: int, own: str | None) -> None:
        for finding in self._findings(runner, own):
            logger.error("iteration %d, %s", iteration, finding)

    def _findings(self, runner: Runner, own: str | None, otherwise: str | None = None) -> list[str]:
        """Texts for the main process to log, one per process that found something; all must call this.

        Args:
            runner: The runner of this process.
            own: What this process found, if anything.
            otherwise: What to say of every process if none found anything of its own.
        """
        found = [(own, self._names)]
        if dist.is_initialized():
            mine, found = found[0], found * dist.get_world_size()
            dist.all_gather_object(found, mine)
        if runner.rank != 0:
            return []
        nobody = all(text is None for text, _ in found)
        texts = [(rank, otherwise if nobody else text, names) for rank, (text, names) in enumerate(found)]
        return [f"rank {rank}: {text}, samples: {', '.join(names)}" for rank, text, names in texts if text]

    def _raise(self, runner: Runner, iteration: int, why: str = "") -> NoReturn:
        last = latest_checkpoint(Path(runner.work_dir))
        raise NonFiniteLossError(
            f"non-finite loss, gradients or weights at iteration {iteration}; the log names the samples."
            f"{why} Last good checkpoint: {last or 'none yet'}. Look at the samples, lower the learning "
            f"rate, or use precision bf16 or fp32."
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._received_at > REPEAT_AFTER:
            raise SignalInterrupt(number)
        if self.received is None:
            self._received_at = time.monotonic()
            logger.warning(
                "%s: finishing this step or validation, then saving; again to stop at once",
                signal.Signals(number).name,
            )
            if self._previous:
                signal.setitimer(signal.ITIMER_REAL, BATCH_GRACE / 5, BATCH_GRACE / 5)
        self.received = number

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        """End the run if it waits for a batch in vain; only a signal handler can interrupt that wait."""
        since = waiting_since()
        if self.received is None or since is None:
            return
        waited = time.monotonic() - max(since, self._received_at)
        if waited > BATCH_GRACE:
            logger.error(  # any process may be the one that waits, and all log errors
                "%s: stopped while waiting for a batch, which did not come within %.0f s; nothing was saved "
                "now, --resume goes on from the last checkpoint",
                *(signal.Signals(self.received).name, waited),
            )
            raise SignalInterrupt(self.received)


def _own_finding(outcome: StepOutcome) -> str | None:
    """What was not finite in this process; None if its loss and its statistics were finite."""
    if not outcome.own_fault:
        return None
    return "running statistics not finite" if math.isfinite(outcome.loss) else f"loss {outcome.loss}"
