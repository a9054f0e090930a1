"""Feed-forward network whose last output channels are specific to a task (MoE-MDF, Eq. 8-10).

The first linear layer and the activation are shared by all tasks. The second linear layer is split
by output channel: the first `C - expert_channels` come from a shared layer, the rest from the layer
of the image's own task. The batch is ordered by task, so that a task is a slice of it and all tasks
need one forward pass only.
"""

import re
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from s5.backbones.contract import Counts, StateDict

EXPERT_KEY = re.compile(r"^blocks\.\d+\.mlp\.experts\.([^.]+)\.")


class MoeMlp(nn.Module):
    """FFN with a shared part and one expert per task.

    If all images in the batch belong to one task, it uses the concatenated weight matrix, which makes it
    equal to a plain FFN with the same weights bit for bit.
    """

    def __init__(self, width: int, hidden: int, experts: Sequence[str], expert_channels: int) -> None:
        """Build the layer.

        Args:
            width: Channels C of a token.
            hidden: Channels between the two linear layers.
            experts: Names of the tasks.
            expert_channels: Output channels of an expert, 1 to C; with C, the second linear layer has no
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

    def forward(self, tokens: torch.Tensor, counts: Counts) -> torch.Tensor:
        """Transform tokens.

        Args:
            tokens: (B, N, C), ordered by task.
            counts: Number of images of each task, in the order of the batch; their sum is B.

        Returns:
            (B, N, C); the last `expert_channels` channels come from the experts.
        """
        return self.transform(tokens, *self.select(counts, tokens.shape[1]))

    def select(self, counts: Counts, length: int) -> tuple[list[nn.Linear], list[int]]:
        """Select the experts of the tasks that have images in the batch.

        Args:
            counts: Number of images of each task, in the order of the batch.
            length: Tokens N per image.

        Returns:
            The experts and the number of tokens of each.
        """
        present = {task: count for task, count in counts.items() if count}
        experts = [cast(nn.Linear, self.experts[task]) for task in present]
        return experts, [count * length for count in present.values()]

    def transform(
        self, tokens: torch.Tensor, experts: Sequence[nn.Linear], sizes: Sequence[int]
    ) -> torch.Tensor:
        """Transform tokens with the given experts.

        Nothing here depends on the tasks of the experts, so that one compiled graph serves all of them.

        Args:
            tokens: (B, N, C), ordered by expert.
            experts: At least one expert, see `select`.
            sizes: Number of tokens of each expert; their sum is B * N.
        """
        hidden = self.act(self.fc1(tokens))
        if len(experts) == 1:
            return self._single(hidden, experts[0])
        own = _apply(experts, hidden, sizes)
        return own if self.fc2 is None else torch.cat((self.fc2(hidden), own), dim=-1)

    def _single(self, hidden: torch.Tensor, expert: nn.Linear) -> torch.Tensor:
        if self.fc2 is None:
            return expert(hidden)
        weight = torch.cat((self.fc2.weight, expert.weight))  # (C, hidden)
        return F.linear(hidden, weight, torch.cat((self.fc2.bias, expert.bias)))


def _apply(experts: Sequence[nn.Linear], hidden: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Apply each expert to its part of (B, N, hidden); returns (B, N, expert_channels)."""
    batch, length = hidden.shape[:2]
    if torch.compiler.is_compiling():
        # Split by tokens: with images, a task's size of 1 would be compiled as a constant.
        hidden = hidden.flatten(0, 1)
    else:
        sizes = [size // length for size in sizes]
    own = torch.cat([expert(part) for expert, part in zip(experts, hidden.split(sizes), strict=True)])
    return own.view(batch, length, -1)


def expert_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of a backbone's experts, from the names of its tensors; empty for a dense backbone."""
    return tuple(dict.fromkeys(match[1] for name in names if (match := EXPERT_KEY.match(name))))


def split_experts(tensors: StateDict, experts: Sequence[str], expert_channels: int) -> StateDict:
    """Convert dense FFNs to equivalent MoE FFNs: each expert gets a copy of the last rows.

    Args:
        tensors: Weights of a dense backbone of width C.
        experts: Names of the tasks.
        expert_channels: Rows of the second linear layer that go to every expert; the first
            `C - expert_channels` go to the shared part, which is absent if there are none.
    """
    split = {}
    for key, value in tensors.items():
        if ".mlp.fc2." not in key:
            split[key] = value
            continue
        shared = len(value) - expert_channels
        if shared:
            split[key] = value[:shared]
        for name in experts:
            split[key.replace(".fc2.", f".experts.{name}.")] = value[shared:]
    return split


def join_experts(tensors: StateDict, task: str) -> StateDict:
    """Convert the MoE FFNs of a backbone to the equivalent dense ones for one task; drops other experts."""
    joined = {name: value for name, value in tensors.items() if not EXPERT_KEY.match(name)}
    for name, value in tensors.items():
        if (match := EXPERT_KEY.match(name)) and match[1] == task:
            dense = name.replace(f".experts.{task}.", ".fc2.")
            joined[dense] = torch.cat((tensors[dense], value)) if dense in tensors else value
    return joined
