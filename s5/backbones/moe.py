"""Feed-forward network whose last output channels are specific to a task (MoE-MDF, Eq. 8-10).

The first linear layer and the activation are shared by all tasks. The second linear layer is split
by output channel: the first `C - expert_channels` come from a shared layer, the rest from the layer
of the image's own task. The batch is ordered by task, so that a task is a slice of it and all tasks
need one forward pass only.

`MoeMlp` is the FFN of this package's own blocks, which pass it the images of each task. `add_experts` gives
experts to the FFNs of a network of another library, whose blocks pass tokens only::

    add_experts(network, ("roads", "ships"), expert_channels=256)
    with routing({"roads": 2, "ships": 1}):
        network(images)  # 3 images
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from s5.backbones.contract import Counts, StateDict
from s5.compat.cpu_linear import checkpoint_contexts

EXPERT_KEY = re.compile(r"^(?:.+\.)?mlp\.experts\.([^.]+)\.")
# In names of tensors. Networks in `rel_pos` compute biases of attention from relative positions.
SECOND_LAYER = re.compile(r"(?<!\.rel_pos)\.mlp\.fc2\.")
INIT_STD = 0.02  # of experts in networks of other libraries, as in most transformers

_counts: ContextVar[Counts | None] = ContextVar("counts", default=None)


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


class RoutedLinear(nn.Module):
    """Second linear layer of an FFN, of which an expert per task computes the last output channels.

    Its own weight and bias are the shared part, None without one. The experts belong to the FFN. They are
    chosen by the counts of the enclosing `routing`.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, dense: nn.Linear, experts: nn.ModuleDict, expert_channels: int) -> None:
        """Split a layer with C output channels; the shared part keeps its first `C - expert_channels`.

        Args:
            dense: The layer.
            experts: Linear layers by task.
            expert_channels: Output channels of an expert, 1 to C.
        """
        super().__init__()
        shared = dense.out_features - expert_channels
        for name, value in (("weight", dense.weight), ("bias", dense.bias)):
            kept = nn.Parameter(value.detach()[:shared].clone()) if shared and value is not None else None
            self.register_parameter(name, kept)
        self._experts = (experts,)  # in a tuple, so that they are not registered twice

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Transform tokens (B, ..., hidden), ordered by task, to (B, ..., C).

        Raises:
            RuntimeError: There is no `routing` around this call.
        """
        if (counts := _counts.get()) is None:
            raise RuntimeError("a network with experts runs inside `routing(counts)` only")
        present = {task: count for task, count in counts.items() if count}
        experts = [cast(nn.Linear, self._experts[0][task]) for task in present]
        if len(experts) == 1:
            return self._single(hidden, experts[0])
        parts = hidden.split(list(present.values()))
        own = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
        return own if self.weight is None else torch.cat((F.linear(hidden, self.weight, self.bias), own), -1)

    def _single(self, hidden: torch.Tensor, expert: nn.Linear) -> torch.Tensor:
        """Use the concatenated weights, which equals a dense layer bit for bit."""
        if self.weight is None:
            return expert(hidden)
        bias = None if self.bias is None else torch.cat((self.bias, expert.bias))
        return F.linear(hidden, torch.cat((self.weight, expert.weight)), bias)


class routing:  # noqa: N801 - used like a function
    """Inside `with routing(counts):` the experts of `add_experts` get the images of their tasks.

    It holds for one thread. Activations that are recomputed in the backward pass, after the `with`, need
    `recompute`.

    Attributes:
        counts: Number of images of each task, in the order of the batch; None for a dense network.
    """

    def __init__(self, counts: Counts | None) -> None:
        self.counts = counts
        self._before: list[Token] = []

    def __enter__(self) -> None:
        self._before.append(_counts.set(self.counts))

    def __exit__(self, *error: object) -> None:
        _counts.reset(self._before.pop())


def recompute(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:  # noqa: ANN401 - of blocks
    """Call a part of a network and recompute its activations in the backward pass, with the same routing."""
    counts = _counts.get()

    def routed(*inputs: Any, **options: Any) -> Any:  # noqa: ANN401
        with routing(counts):
            return function(*inputs, **options)

    return checkpoint(routed, *inputs, use_reentrant=False, context_fn=checkpoint_contexts(), **options)


def recompute_always(block: nn.Module) -> None:
    """Make a block of another library recompute its activations in every backward pass, as `recompute` does.

    The checkpointing of the library itself would recompute without routing.
    """
    block.forward = partial(_with_gradient, block.forward)  # type: ignore[method-assign]


def _with_gradient(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:  # noqa: ANN401
    if torch.is_grad_enabled():
        return recompute(forward, *inputs, **options)
    return forward(*inputs, **options)


def ffns(network: nn.Module) -> dict[str, nn.Module]:
    """FFNs of a network that can have experts, by name: modules `mlp` with a linear layer `fc2`."""
    return {
        name: module
        for name, module in network.named_modules()
        if SECOND_LAYER.search(f".{name}.fc2.") and isinstance(getattr(module, "fc2", None), nn.Linear)
    }


def add_experts(network: nn.Module, experts: Sequence[str], expert_channels: int) -> None:
    """Give every FFN of a network an expert per task.

    In networks whose FFNs have several widths, the experts of each have the same share of the channels,
    rounded up. The experts start from random weights, and names of tensors are those of `MoeMlp`:
    `<block>.mlp.experts.<task>.*`.

    Args:
        network: The network; its forward pass then needs `routing`.
        experts: Names of the tasks.
        expert_channels: Output channels of an expert in the widest FFN, 1 to its width.

    Raises:
        ValueError: There is no FFN that can have experts, or `expert_channels` is out of range.
    """
    found = ffns(network).values()
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no FFN (mlp.fc2) that can have experts: choose it without _moe"
        )
    widest = max(width_of(mlp) for mlp in found)
    if not 0 < expert_channels <= widest:
        raise ValueError(f"expert_channels must be between 1 and {widest}, got {expert_channels}")
    for mlp in found:
        dense = cast(nn.Linear, mlp.fc2)
        channels = channels_at(dense.out_features, widest, expert_channels)
        own = nn.ModuleDict({task: _expert(dense, channels) for task in experts})
        mlp.fc2 = RoutedLinear(dense, own, channels)
        mlp.experts = own


def channels_at(width: int, widest: int, expert_channels: int) -> int:
    """Output channels of an expert in an FFN of some width: the same share as in the widest, rounded up."""
    return -(-width * expert_channels // widest)


def _expert(dense: nn.Linear, channels: int) -> nn.Linear:
    """Build an expert with random weights for the last output channels of a layer."""
    expert = nn.Linear(dense.in_features, channels, bias=dense.bias is not None)
    nn.init.trunc_normal_(expert.weight, std=INIT_STD)
    if dense.bias is not None:
        nn.init.zeros_(expert.bias)
    return expert


def width_of(mlp: nn.Module) -> int:
    """Output channels of an FFN."""
    return cast(nn.Linear, mlp.fc2).out_features


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


def expert_width(tensors: Mapping[str, torch.Tensor]) -> int:
    """Output channels of an expert in the widest FFN; 0 for a dense backbone."""
    return max((len(tensor) for name, tensor in tensors.items() if EXPERT_KEY.match(name)), default=0)


def fit_experts(
    tensors: StateDict, experts: Sequence[str], expert_channels: int
) -> tuple[StateDict, list[str]]:
    """Split dense FFNs for a backbone with experts, unless the weights have experts; also returns notes."""
    if not experts or expert_names(tensors):
        return tensors, []
    note = f"dense FFNs split: last {expert_channels} channels copied to every expert"
    return split_experts(tensors, experts, expert_channels), [note]


def split_experts(tensors: StateDict, experts: Sequence[str], expert_channels: int) -> StateDict:
    """Convert dense FFNs to equivalent MoE FFNs: each expert gets a copy of the last rows.

    Args:
        tensors: Weights of a dense backbone.
        experts: Names of the tasks.
        expert_channels: Rows of the second linear layer that go to every expert, in the widest FFN; see
            `add_experts`. The others go to the shared part, which is absent if there are none.
    """
    layers = {
        key.rpartition(".")[0]: len(value)
        for key, value in tensors.items()
        if SECOND_LAYER.search(key) and value.ndim == 2  # not convolutions
    }
    widest = max(layers.values(), default=0)
    split = {}
    for key, value in tensors.items():
        if key.rpartition(".")[0] not in layers:
            split[key] = value
            continue
        shared = len(value) - channels_at(len(value), widest, expert_channels)
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
