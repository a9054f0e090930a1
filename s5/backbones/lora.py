"""LoRA: low-rank adapters per task on linear layers of any backbone (Hu et al., arXiv 2106.09685).

An adapted layer computes W x + b + alpha / rank * B A x. W and b are frozen and shared by all tasks; A and B
belong to one task. The batch is ordered by task, so one product with W serves all images, and every task
multiplies its slice by its own A and B.

This is not the `peft` library, for three reasons. peft mixes adapters in a batch for inference only, by a
list with one name per row of a layer's input, which windowed attention (several rows per image) breaks. It
wraps layers, which renames the weights that layouts and layer decay know. And it depends on transformers and
accelerate. The tests compare outputs, gradients and merged weights with peft.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.backbones.contract import TASK_PART, Backbone, Counts, StateDict, resolve_counts
from s5.errors import CheckpointError, did_you_mean
from s5.ranges import Positive, PositiveFloat

LORA_KEY = re.compile(r"^(.+)\.lora\.([^.]+)\.([ab])$")  # layer, task, factor
LORA_SCALE = "lora_scale"
"""Buffer (1,) of a backbone with alpha / rank, without which weight files could not be merged."""


@dataclass(frozen=True)
class Lora:
    """Settings of the adapters.

    Attributes:
        rank: Rank of the update.
        alpha: The update is multiplied by alpha / rank.
        targets: Names of the adapted linear layers, or the ends of their names.
    """

    rank: Positive = 8
    alpha: PositiveFloat = 16.0
    targets: tuple[str, ...] = ("attn.qkv", "attn.proj")

    @property
    def scale(self) -> float:
        """Factor of the update, rounded to float32 as in weight files."""
        return float(np.float32(self.alpha / self.rank))


class TaskRouting:
    """The tasks of the images that a backbone is processing, shared by all its adapters.

    It is set by hooks on the backbone, so that layers need no further argument. Activation checkpointing
    runs layers again in the backward pass, possibly after other batches: as every gradient enters through the
    backbone's output, a hook there sets the tasks of that batch again.

    Attributes:
        tasks: Names of all tasks.
        counts: Number of images of each task in the batch; empty while the backbone is not running.
        only: The task, if all images are of one. So a compiled block does not depend on their number.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.counts: Counts = {}
        self.only: str | None = None

    def attach(self, backbone: Backbone) -> None:
        """Follow the forward and backward passes of a backbone."""
        # Bound methods, of which a deep copy of the backbone gets those of its own routing.
        backbone.register_forward_pre_hook(self._enter, with_kwargs=True)
        backbone.register_forward_hook(self._leave)

    def split(self, rows: Tensor) -> list[tuple[str, Tensor]]:
        """Split the input of a layer into the parts of the tasks in the batch.

        Args:
            rows: (B * k, ...), with k rows per image, such as its windows, in the order of the images.

        Raises:
            RuntimeError: The backbone is not running.
            ValueError: The rows are not a multiple of the images.
        """
        if self.only is not None:
            return [(self.only, rows)]
        if not self.counts:
            raise RuntimeError("a layer with LoRA was called directly; call the backbone that contains it")
        batch = sum(self.counts.values())
        per_image = rows.shape[0] // batch
        if per_image * batch != rows.shape[0]:
            raise ValueError(
                f"LoRA: a layer gets {rows.shape[0]} rows for {batch} images, so they cannot be divided "
                f"among tasks; leave this layer out of model.lora.targets"
            )
        sizes = [count * per_image for count in self.counts.values()]
        return list(zip(self.counts, rows.split(sizes), strict=True))

    def _enter(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        images = args[0] if args else kwargs["images"]
        counts = args[1] if len(args) > 1 else kwargs.get("counts")
        counts = resolve_counts(self.tasks, counts, images.shape[0])
        self._set({task: count for task, count in counts.items() if count})

    def _leave(self, backbone: nn.Module, args: tuple[Any, ...], maps: Sequence[Tensor]) -> None:
        for level in maps:
            if level.requires_grad:
                level.register_hook(partial(self._set_again, self.counts))
        self._set({})

    def _set(self, counts: Counts) -> None:
        self.counts = counts
        self.only = next(iter(counts)) if len(counts) == 1 else None

    def _set_again(self, counts: Counts, gradient: Tensor) -> None:
        self._set(counts)


class Adapter(nn.Module):
    """The factors of one task: `a` (rank, in) with Kaiming initialisation, `b` (out, rank) with zeros."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, in_features))
        self.b = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as nn.Linear, LoRA's code and peft

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply rows (..., in) by A and B."""
        return F.linear(F.linear(rows, self.a), self.b)


class LoraLinear(nn.Linear):
    """A linear layer with an adapter per task; its own weights keep their names."""

    def __init__(self, layer: nn.Linear, lora: Lora, routing: TaskRouting) -> None:
        """Take over the parameters of `layer`, and add an adapter for every task of `routing`."""
        sizes = layer.in_features, layer.out_features
        super().__init__(*sizes, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = lora.scale
        self.routing = routing
        self.lora = nn.ModuleDict({task: Adapter(*sizes, lora.rank) for task in routing.tasks})

    def forward(self, rows: Tensor) -> Tensor:  # type: ignore[override]
        """Compute (B * k, ..., out) from (B * k, ..., in), ordered by task."""
        updates = [self.lora[task](part) for task, part in self.routing.split(rows)]
        update = updates[0] if len(updates) == 1 else torch.cat(updates)
        return torch.add(F.linear(rows, self.weight, self.bias), update, alpha=self.scale)


def add_adapters(backbone: Backbone, tasks: Sequence[str], lora: Lora) -> None:
    """Freeze a backbone and add an adapter per task to its linear layers.

    At the start it computes the same as before. Adapters, experts and the pyramid are trained.

    Args:
        backbone: Any backbone, dense or with experts of the same tasks.
        tasks: Names of the tasks, at least one.
        lora: Settings of the adapters.

    Raises:
        ValueError: A target is unknown (the message lists the known ones), the rank does not fit, or an
            adapter would have no effect.
    """
    if not tasks:
        raise ValueError("LoRA needs the name of at least one task")
    chosen = _chosen_layers(backbone, lora)
    routing = TaskRouting(tasks)
    backbone.train_parts("lora")
    for name, layer in chosen.items():
        backbone.set_submodule(name, LoraLinear(layer, lora, routing))
    backbone.adapters = routing.tasks
    backbone.register_buffer(LORA_SCALE, torch.tensor([lora.scale]))
    routing.attach(backbone)
    _require_effect(backbone, lora)


def adapter_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the tasks with adapters, from the names of a backbone's tensors; empty if there are none."""
    return tuple(dict.fromkeys(match[2] for name in names if (match := LORA_KEY.match(name))))


def adapted_weight(name: str) -> str:
    """Name of the weight that the factor of an adapter adapts; other names are returned unchanged."""
    match = LORA_KEY.match(name)
    return f"{match[1]}.weight" if match else name


def lora_of(tensors: Mapping[str, Tensor]) -> Lora | None:
    """Settings of the adapters in a backbone's weights, with full names of layers; None if there are none.

    Raises:
        CheckpointError: The factor of the update is missing.
    """
    factors = {name: match for name in tensors if (match := LORA_KEY.match(name))}
    if not factors:
        return None
    if LORA_SCALE not in tensors:
        raise CheckpointError(f"LoRA adapters, but no {LORA_SCALE}: the weights are incomplete")
    rank = next(len(tensors[name]) for name, match in factors.items() if match[3] == "a")
    layers = tuple(dict.fromkeys(match[1] for match in factors.values()))
    return Lora(rank, rank * float(tensors[LORA_SCALE]), layers)


def merge_adapters(tensors: StateDict, task: str) -> StateDict:
    """Add the update of a task to the weights, W + alpha / rank * B A, and drop all adapters.

    Sums are computed in float32; weights keep their dtype.
    """
    merged = {name: value for name, value in tensors.items() if not LORA_KEY.match(name)}
    scale = float(merged.pop(LORA_SCALE))
    for name in tensors:
        if (match := LORA_KEY.match(name)) and match.groups()[1:] == (task, "a"):
            weight, a = tensors[f"{match[1]}.weight"], tensors[name]
            b = tensors[f"{match[1]}.lora.{task}.b"]
            update = scale * (b.float() @ a.float())
            merged[f"{match[1]}.weight"] = (weight.float() + update).to(weight.dtype)
    return merged


def _chosen_layers(backbone: Backbone, lora: Lora) -> dict[str, nn.Linear]:
    """Linear layers of the targets by name."""
    layers = {
        name: module
        for name, module in backbone.named_modules()
        if type(module) is nn.Linear and not name.startswith(backbone.own) and not TASK_PART.search(name)
    }
    known = list(dict.fromkeys(map(_target, layers)))
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            has = f"has {', '.join(known)}{did_you_mean(target, known)}" if known else "has no linear layers"
            raise ValueError(f"targets {target!r}: {backbone.name} {has}")
    ends = tuple(f".{target}" for target in lora.targets)
    chosen = {name: layer for name, layer in layers.items() if f".{name}".endswith(ends)}
    if not chosen:
        raise ValueError(f"targets is empty; known linear layers of {backbone.name}: {', '.join(known)}")
    name, layer = min(chosen.items(), key=lambda item: min(item[1].weight.shape))
    if not 1 <= lora.rank <= min(layer.weight.shape):
        raise ValueError(
            f"rank {lora.rank}: must be between 1 and {min(layer.weight.shape)}, the width of {name}; "
            f"common values are 4 to 64"
        )
    return chosen


def _require_effect(backbone: Backbone, lora: Lora) -> None:
    """Reject layers whose weight the backbone uses without calling them, which bypasses the adapter."""
    unused = {name for name, module in backbone.named_modules() if isinstance(module, LoraLinear)}

    def called(name: str, *_: object) -> None:
        unused.discard(name)

    hooks = [backbone.get_submodule(name).register_forward_hook(partial(called, name)) for name in unused]
    side, training = backbone.architecture.padded(1), backbone.training
    image = backbone.get_parameter(backbone.stem).new_zeros(1, 3, side, side)
    with torch.no_grad():
        backbone.eval()(image, {backbone.adapters[0]: 1})
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    if unused:
        bypassed = ", ".join(dict.fromkeys(_target(name) for name in sorted(unused)))
        raise ValueError(
            f"targets {list(lora.targets)}: {backbone.name}{' with experts' if backbone.experts else ''} "
            f"does not call {bypassed} as a layer, so that an adapter would have no effect; leave it out"
        )


def _target(name: str) -> str:
    """The name of a layer within its block, such as `attn.qkv`."""
    return ".".join(re.sub(r"^(?:.*\.)?\d+\.", "", name).split(".")[-2:])
