"""An optimizer step that all processes skip if the loss or a gradient of any of them is not finite.

It needs no device synchronisation: the decision is a tensor on the device, and the host reads the outcome of
the step later (:class:`StepReport`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from s5.training.model import TaskModel


class StepOutcome(NamedTuple):
    """Outcome of one step.

    Attributes:
        fault: Whether the step was skipped because a loss, a running statistic or a gradient was not finite.
            False for steps that a loss scaler skips while it searches for its scale.
        stop: The largest signal number that any process has received, 0 for none.
        own_fault: Whether the loss or the running statistics of this process were not finite.
        loss: Loss of this process.
        scale: Factor of the loss before the backward pass; 1 without a loss scaler.
    """

    fault: bool
    stop: int
    own_fault: bool
    loss: float
    scale: float


class StepReport:
    """The outcome of one step, copied to the host asynchronously.

    Reading it waits for that step, but not for the steps queued after it.

    Args:
        values: (5,) float32, in the order of :class:`StepOutcome`.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._arrived = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> StepOutcome:
        """Wait for the step and return its outcome."""
        if self._arrived is not None:
            self._arrived.synchronize()
        fault, stop, own_fault, loss, scale = self._values.tolist()
        return StepOutcome(bool(fault), int(stop), bool(own_fault), loss, scale)


class RunningStatistics:
    """Backup of a network's buffers, which batch norm updates before it is known whether the step is skipped.

    Args:
        buffers: The tensors; they must not be replaced later.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers:
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._groups = list(by_dtype.values())
        self._before: list[Tensor] = []

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers, on their device."""
        self._before = [_flat(group) for group in self._groups]

    def finite(self) -> Iterator[Tensor]:
        """Bool scalars on the device, one per floating-point dtype: whether all buffers are finite."""
        return (_flat(group).isfinite().all() for group in self._groups if group[0].is_floating_point())

    @torch.no_grad()
    def restore_where(self, skipped: Tensor) -> None:
        """Restore the saved buffers if the bool scalar `skipped` is true; otherwise leave them unchanged."""
        for group, before in zip(self._groups, self._before, strict=True):
            kept = torch.where(skipped, before, _flat(group)).split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(b) for part, b in zip(kept, group, strict=True)])


class GuardedOptimWrapper(OptimWrapper):
    """Optimizer wrapper whose step has no effect if the loss or the gradients of any process are not finite.

    A skipped step leaves weights, optimizer state, running statistics and everything that the model updates
    in :meth:`~s5.training.model.TaskModel.after_step` (an EMA teacher) unchanged. The learning-rate schedule
    counts skipped steps too. Processes agree in one small all-reduce, which also carries the stop signal.

    Gradients count as non-finite if their total norm in float32 is. With a loss scaler, non-finite gradients
    are expected while it searches for its scale, and are a fault only if the loss is not finite either. In
    that case the scale is kept: scaling is applied after the loss and cannot be the cause.

    Args:
        optimizer: A fused optimizer, which can skip a step on the device.
        clip_grad: Maximum total norm of the gradients; None disables clipping.
        loss_scaler: Gradient scaler for fp16.

    Attributes:
        grad_norm: Total norm of the gradients of the newest step before clipping, on the device.
        report: Outcome of the newest step.
        stop_request: Called in every step; returns the signal that this process has received, or 0.
    """

    grad_norm: Tensor
    report: StepReport

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        loss_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(optimizer, clip_grad=None if clip_grad is None else {"max_norm": clip_grad})
        self.loss_scaler = loss_scaler
        self.stop_request: Callable[[], int] = lambda: 0
        self._model: TaskModel | None = None
        self._statistics = RunningStatistics([])

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Save the running statistics before the forward pass updates them."""
        inner = cast(TaskModel, model.module if is_model_wrapper(model) else model)
        if inner is not self._model:  # traversing all modules takes almost a millisecond
            self._model, self._statistics = inner, RunningStatistics(inner.network.buffers())
        self._statistics.save()
        with super().optim_context(model):
            yield

    def update_params(self, loss: Tensor) -> None:  # type: ignore[override]
        """Run the backward pass and the optimizer step, which has no effect if anything is not finite."""
        self.backward(loss if self.loss_scaler is None else self.loss_scaler.scale(loss))
        if self.loss_scaler is not None:
            self.loss_scaler.unscale_(self.optimizer)
        self.grad_norm = self._clip_to_norm()
        own_fault = self._own_fault(loss)
        loss_fault, gradient_fault, stop = self._agree(own_fault, ~self.grad_norm.isfinite())
        skip = torch.maximum(loss_fault, gradient_fault)  # float32, 0 or 1, as fused optimizers expect it
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # fused kernels read it on the device
        self.step()
        del self.optimizer.found_inf  # type: ignore[attr-defined]
        scale = self._update_scale(loss_fault.bool(), like=skip)
        self.zero_grad()
        self._statistics.restore_where(skip.bool())
        if self._model is not None:
            self._model.after_step(skip.bool())
        fault = skip if self.loss_scaler is None else loss_fault
        self.report = StepReport(torch.stack([fault, stop, own_fault.float(), loss.detach().float(), scale]))

    def step(self, **kwargs: Any) -> None:
        """Step the optimizer with the current gradients."""
        self.optimizer.step(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the loss scaler."""
        state = super().state_dict()
        return state if self.loss_scaler is None else {**state, "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states; that of the loss scaler may be missing, and is ignored without a loss scaler."""
        scaler = state_dict.pop("loss_scaler", None)
        if scaler is not None and self.loss_scaler is not None:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)

    def _clip_to_norm(self) -> Tensor:
        """Clip the gradients if configured; return their total norm, non-finite if any gradient is."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        weights = [weight for weight in weights if weight.requires_grad and weight.grad is not None]
        if self.clip_grad_kwargs:
            return nn.utils.clip_grad_norm_(weights, **self.clip_grad_kwargs)
        return nn.utils.get_total_norm([cast(Tensor, weight.grad) for weight in weights])

    def _own_fault(self, loss: Tensor) -> Tensor:
        finite = torch.stack([loss.detach().isfinite(), *self._statistics.finite()])
        return ~finite.all()

    def _agree(self, loss_fault: Tensor, gradient_fault: Tensor) -> Tensor:
        """Return the maxima over all processes (3,) of the two faults (0 or 1) and the stop signal."""
        stop = torch.full((), self.stop_request(), dtype=torch.float32, device=loss_fault.device)
        flags = torch.stack([loss_fault.float(), gradient_fault.float(), stop])
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return flags

    def _update_scale(self, loss_fault: Tensor, like: Tensor) -> Tensor:
        """Update the loss scaler if the loss was finite; return the new scale."""
        scaler = self.loss_scaler
        if scaler is None:
            return torch.ones_like(like)
        state = [cast(Tensor, scaler._scale), cast(Tensor, scaler._growth_tracker)]
        before = [tensor.clone() for tensor in state]
        scaler.update()
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(torch.where(loss_fault, old, tensor))
        return state[0]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


WINDOW = 1000  # steps


@dataclass
class SkippedSteps:
    """Counter of skipped steps, with the limits at which a run ends.

    Attributes:
        max_in_a_row: Number of consecutive skipped steps that ends the run.
        max_share: The run also ends with more than this share of 1000 skipped steps within the last 1000
            steps, even if it has taken fewer than 1000.
        total: Skipped steps since the start of the run.
        in_a_row: Current number of consecutive skipped steps.
        recent: Iterations (from 1) of the skipped steps within the 1000 steps up to the newest of them.
    """

    max_in_a_row: int = 10
    max_share: float = 0.01
    total: int = 0
    in_a_row: int = 0
    recent: list[int] = field(default_factory=list)

    def count(self, iteration: int, skipped: bool) -> str | None:
        """Count one step; return why the run must end, or None."""
        if not skipped:
            self.in_a_row = 0
            return None
        self.total += 1
        self.in_a_row += 1
        self.recent = [*(step for step in self.recent if step > iteration - WINDOW), iteration]
        if self.in_a_row >= self.max_in_a_row:
            return (
                f"{self.in_a_row} steps in a row were skipped "
                f"(schedule.max_skipped_in_a_row = {self.max_in_a_row})"
            )
        if len(self.recent) > self.max_share * WINDOW:
            return (
                f"{len(self.recent)} of the last {WINDOW} steps were skipped "
                f"(schedule.max_skipped_share = {self.max_share:.2%})"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, without the limits."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("max_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.total, self.in_a_row, self.recent = state["total"], state["in_a_row"], list(state["recent"])
