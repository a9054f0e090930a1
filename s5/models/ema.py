"""Exponential moving average of a network's weights, the teacher of mean-teacher methods."""

import copy

import torch
from torch import nn


class EmaTeacher(nn.Module):
    """A copy of a network whose weights follow it slowly.

    The decay grows with the steps taken, ``min(1 - 1 / (step + 1), decay)``, so that early random weights are
    forgotten quickly. Buffers (normalisation statistics) are copied.

    Args:
        network: the network to follow.
        decay: final decay in [0, 1).
    """

    step: torch.Tensor

    def __init__(self, network: nn.Module, decay: float = 0.996) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._steps = 0  # mirrors the buffer on the host: reading the buffer would wait for the device

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards ``network`` once, after an optimizer step."""
        self._steps += 1
        self.step += 1
        decay = min(1 - 1 / (self._steps + 1), self.decay)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode."""
        return super().train(False)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._steps = int(self.step)
