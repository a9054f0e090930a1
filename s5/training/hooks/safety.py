"""Stop all processes together: cleanly on a signal, and with an error after too many non-finite steps."""

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

SMALLEST_SCALE = 2.0**-20  # of the loss; it starts at 2 ** 16 and is halved by every skipped step
REPEAT_AFTER = 3.0  # seconds; earlier signals are torchrun forwarding the one sent by the terminal
BATCH_GRACE = 10.0  # seconds to wait for a batch after a signal before giving up


class NonFiniteLossError(UserError, RuntimeError):
    """Weights, or losses or gradients of too many steps, are not finite; names the last good checkpoint."""


class _Step(NamedTuple):
    iteration: int  # from 1
    names: list[str]  # of the samples of this process
    report: StepReport


class SafetyHook(ResumableHook):
    """Decides after every step, collectively in all processes, whether training continues.

    On SIGINT or SIGTERM, the current step finishes, a checkpoint is saved and the loop ends. A second signal
    more than three seconds later stops immediately with a :class:`SignalInterrupt`, and so does the first one
    if the run waits longer than :data:`BATCH_GRACE` for a batch. Signals are handled inside `with hook:`.

    A step whose loss or gradients are not finite has had no effect
    (:class:`~s5.training.guarded_step.GuardedOptimWrapper`). This hook counts it and logs the names of its
    samples. Too many skipped steps, or weights that are not finite, raise an error in all processes before
    anything is saved.

    Args:
        skipped: Counter of skipped steps and their limits.
        delay: Number of steps by which the host lags behind when it reads outcomes. With 1, the GPU works on
            the next step meanwhile, and signals take effect one step later. All outcomes are read before
            anything is saved or validated.

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
        self._stop = 0  # signal that all processes have agreed on
        self._previous: dict[int, Any] = {}
        self._steps: deque[_Step] = deque()
        self._names: list[str] = []  # samples of the newest step whose outcome was read

    def __enter__(self) -> "SafetyHook":
        """Install the signal handlers (possible in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the previous signal handlers."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def before_train(self, runner: Runner) -> None:
        """Let every step poll for signals, and log the count of skipped steps from the start."""
        cast(GuardedOptimWrapper, runner.optim_wrapper).stop_request = lambda: self.received or 0
        self._log_count(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the step, or the one before it, and stop if any process has received a signal."""
        report = cast(GuardedOptimWrapper, runner.optim_wrapper).report
        self._steps.append(_Step(runner.iter + 1, (data_batch or {})["names"], report))
        self._review(runner, self.delay)
        if self._stop:  # only in this method, so that the checkpoint of the step is still written
            self.stopped_by = signal.Signals(self._stop)
            runner.train_loop.stop_training = True

    def after_train(self, runner: Runner) -> None:
        """Check the last steps."""
        self._review(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Raise an error if the weights are not finite."""
        self._review(runner)
        self._check_weights(runner, checkpoint["meta"]["iter"])

    def state_dict(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Return the counts of skipped steps."""
        return self.skipped.state_dict()

    def load_state_dict(self, runner: Runner, iteration: int, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.skipped.load_state_dict(state)

    def before_val(self, runner: Runner) -> None:
        """Raise an error if the weights are not finite, because a validation may save them as the best."""
        self._review(runner)
        self._check_weights(runner, runner.iter)

    def _review(self, runner: Runner, leave: int = 0) -> None:
        """Check all steps but the newest `leave`."""
        while len(self._steps) > leave:
            step = self._steps.popleft()
            self._check_step(runner, step, step.report.read())

    def _check_step(self, runner: Runner, step: _Step, outcome: StepOutcome) -> None:
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
        """Gather messages for the main process to log, one per process with a finding; all must call this.

        Args:
            runner: The runner of this process.
            own: Finding of this process, if any.
            otherwise: Message for every process if none has a finding of its own.
        """
        gathered = [(own, self._names)]
        if dist.is_initialized():
            mine, gathered = gathered[0], gathered * dist.get_world_size()
            dist.all_gather_object(gathered, mine)
        if runner.rank != 0:
            return []
        none_found = all(text is None for text, _ in gathered)
        texts = [
            (rank, otherwise if none_found else text, names) for rank, (text, names) in enumerate(gathered)
        ]
        return [f"rank {rank}: {text}, samples: {', '.join(names)}" for rank, text, names in texts if text]

    def _raise(self, runner: Runner, iteration: int, why: str = "") -> NoReturn:
        last = latest_checkpoint(Path(runner.work_dir))
        raise NonFiniteLossError(
            f"non-finite loss, gradients or weights at iteration {iteration}; the log names the samples."
            f"{why} Last good checkpoint: {last or 'none yet'}. Check the samples, lower the learning "
            f"rate, or use precision bf16 or fp32."
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._received_at > REPEAT_AFTER:
            raise SignalInterrupt(number)
        if self.received is None:
            self._received_at = time.monotonic()
            logger.warning(
                "%s: finishing this step or validation, then saving; send it again to stop immediately",
                signal.Signals(number).name,
            )
            if self._previous:
                signal.setitimer(signal.ITIMER_REAL, BATCH_GRACE / 5, BATCH_GRACE / 5)
        self.received = number

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        """End the run if no batch arrives; only a signal handler can interrupt the wait for one."""
        since = waiting_since()
        if self.received is None or since is None:
            return
        waited = time.monotonic() - max(since, self._received_at)
        if waited > BATCH_GRACE:
            logger.error(  # any process may be waiting, and errors of all processes are logged
                "%s: stopped, because no batch arrived within %.0f s; nothing was saved, --resume continues "
                "from the last checkpoint",
                *(signal.Signals(self.received).name, waited),
            )
            raise SignalInterrupt(self.received)


def _own_finding(outcome: StepOutcome) -> str | None:
    """Describe what was not finite in this process; None if its loss and running statistics were finite."""
    if not outcome.own_fault:
        return None
    return "running statistics not finite" if math.isfinite(outcome.loss) else f"loss {outcome.loss}"
