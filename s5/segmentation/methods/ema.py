"""Exponential moving average of a network's weights, the teacher of mean-teacher methods."""

import copy

import torch
from torch import nn


class EmaTeacher(nn.Module):
    """A copy of a network whose weights follow it slowly.

    The decay grows with the steps taken, `min(1 - 1 / (step + 1), decay)`, so that early random weights are
    forgotten quickly. Buffers (normalisation statistics) are copied.

    Args:
        network: The network to follow.
        decay: Final decay in [0, 1).
    """

    step: torch.Tensor

    def __init__(self, network: nn.Module, decay: float = 0.996) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module, skipped: torch.Tensor) -> None:
        """Move towards `network` after an optimizer step, unless that was skipped.

        The decay is computed on the device, because reading `skipped` or `step` would synchronise.

        Args:
            network: The network to follow.
            skipped: Bool scalar on the device.
        """
        self.step += ~skipped
        decay = (1 - 1 / (self.step.double() + 1)).clamp(max=self.decay)
        weight = torch.where(skipped, 0.0, 1 - decay).float()
        for mean, weights in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(weights, weight)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode."""
        return super().train(False)
