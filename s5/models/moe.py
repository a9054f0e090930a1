"""Feed-forward network whose last output channels are specific to a task (MoE-MDF, Eq. 8-10).

The first linear layer and the activation are shared by all tasks. The second linear layer is split
by output channel: the first `C - expert_channels` come from a shared layer, the rest from the layer
of the image's own task. The batch is ordered by task, so that a task is a slice of it and all tasks
need one forward pass only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class MoeMlp(nn.Module):
    """FFN with a shared part and one expert per task.

    With images of a single task in the batch it multiplies by the joined weight matrix, which makes
    it equal to a plain FFN of the same weights bit for bit.
    """

    def __init__(self, width: int, hidden: int, experts: Sequence[str], expert_channels: int) -> None:
        """Build the layer.

        Args:
            width: Channels C of a token.
            hidden: Channels between the two linear layers.
            experts: Names of the tasks, in the order of the batch.
            expert_channels: Output channels of an expert, 1 to C; with C the second linear layer has no
                shared part.

        Raises:
            ValueError: `expert_channels` is out of range.
        """
        super().__init__()
        if not 0 < expert_channels <= width:
            raise ValueError(f"expert_channels must be between 1 and {width}, got {expert_channels}")
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        shared = width - expert_channels
        self.fc2 = nn.Linear(hidden, shared) if shared else None
        self.experts = nn.ModuleDict({name: nn.Linear(hidden, expert_channels) for name in experts})

    def forward(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Transform tokens.

        Args:
            tokens: (B, N, C), ordered by task.
            counts: Images of each task, in the order of the experts; their sum is B.

        Returns:
            (B, N, C); the last `expert_channels` channels are the experts'.
        """
        hidden = self.act(self.fc1(tokens))
        present = [name for name, count in zip(self.experts, counts, strict=True) if count]
        if len(present) == 1:
            return self._single(hidden, present[0])
        slices = hidden.split(list(counts))
        own = torch.cat([expert(part) for expert, part in zip(self.experts.values(), slices, strict=True)])
        return own if self.fc2 is None else torch.cat((self.fc2(hidden), own), dim=-1)

    def _single(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        expert = self.experts[name]
        assert isinstance(expert, nn.Linear)
        if self.fc2 is None:
            return expert(hidden)
        weight = torch.cat((self.fc2.weight, expert.weight))  # (C, hidden)
        return F.linear(hidden, weight, torch.cat((self.fc2.bias, expert.bias)))
