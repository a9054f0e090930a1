"""Optimizer groups and learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from s5.errors import ConfigError
from s5.training.guarded_step import GuardedOptimWrapper
from s5.training.model import MultiTaskNetwork

BACKBONE = "backbone."  # before the names of its parameters
NORM_LAYERS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def param_groups(
    network: MultiTaskNetwork,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    exempt_norms: bool = True,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Unless `exempt_norms` is false, norms and what the backbone names, such as its positional embedding, are
    not decayed. With `layer_decay` < 1 the learning rate falls by that factor from each layer of the
    backbone to the one before it; the heads have the full rate.

    Args:
        network: Whose backbone knows the layers of its parameters.
        lr: Full learning rate.
        weight_decay: Of all weights, but for the exempt ones.
        layer_decay: Factor from one layer to the one before it.
        exempt_norms: No weight decay on norms and the like.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` (`layer_<i>[_no_decay]`).
    """
    top = network.backbone.num_layers
    exempt = set(_undecayed(network)) if exempt_norms else set()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix(BACKBONE)
        layer = network.backbone.layer_of(own) if own != name else top
        group = f"layer_{layer}_no_decay" if name in exempt else f"layer_{layer}"
        scaled = lr * layer_decay ** (top - layer)
        decay = 0.0 if name in exempt else weight_decay
        groups.setdefault(group, {"params": [], "lr": scaled, "weight_decay": decay, "name": group})
        groups[group]["params"].append(parameter)
    return list(groups.values())


def build_optim_wrapper(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    dtype: torch.dtype | None,
    clip_grad: float | None = None,
) -> GuardedOptimWrapper:
    """Fused AdamW with base rate `lr`; with a gradient scaler when the arithmetic is fp16.

    The model opens autocast itself, around its matrix work. An outer autocast would put the losses into fp16,
    and share its cache of cast weights between the pass without gradient and the one with.
    """
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    scaler = torch.amp.GradScaler() if dtype is torch.float16 else None
    return GuardedOptimWrapper(optimizer, clip_grad, scaler)


@PARAM_SCHEDULERS.register_module()
class EpochCosineLR(_ParamScheduler):
    """Cosine to zero that is constant within an epoch, as `CosineAnnealingLR` stepped once an epoch.

    Args:
        optimizer: Whose learning rates follow it.
        T_max: Iterations from the beginning to zero.
        epoch_iters: Iterations of an epoch; epochs are counted from iteration 0.
        kwargs: `begin` and `end` in iterations, and `by_epoch`, which is false.
    """

    def __init__(self, optimizer: Any, T_max: int, epoch_iters: int, **kwargs: Any) -> None:  # noqa: ANN401
        self.T_max, self.epoch_iters = T_max, epoch_iters
        super().__init__(optimizer, "lr", **kwargs)

    def _get_value(self) -> list[float]:
        start = (self.begin + self.last_step) // self.epoch_iters * self.epoch_iters
        share = max(start - self.begin, 0) / self.T_max
        return [base * (1 + math.cos(math.pi * share)) / 2 for base in self.base_values]


def cosine_schedule(
    total_iters: int, warmup_iters: int = 0, epoch_iters: int | None = None
) -> list[dict[str, Any]]:
    """Cosine to zero over the iterations, after an optional linear warm-up (mmengine scheduler configs).

    Args:
        total_iters: Length of the run.
        warmup_iters: Iterations of the warm-up.
        epoch_iters: Iterations of an epoch, within which the rate stays the same; None changes it every
            iteration.

    Raises:
        ConfigError: The warm-up takes the whole run.
    """
    if warmup_iters >= total_iters:
        raise ConfigError(f"optim.warmup_iters {warmup_iters}: the run has only {total_iters} iterations")
    cosine: dict[str, Any] = {"T_max": total_iters - warmup_iters}
    if epoch_iters is None:
        cosine |= {"type": "CosineAnnealingLR", "eta_min": 0.0}
    else:
        cosine |= {"type": "EpochCosineLR", "epoch_iters": epoch_iters}
    return [
        *_warmup(warmup_iters),
        {**cosine, "by_epoch": False, "begin": warmup_iters, "end": total_iters},
    ]


def step_schedule(milestones: Sequence[int], gamma: float, warmup_iters: int = 0) -> list[dict[str, Any]]:
    """Multiplied by `gamma` at each of the iterations, after an optional linear warm-up."""
    steps = {"type": "MultiStepLR", "milestones": list(milestones), "gamma": gamma, "by_epoch": False}
    return [*_warmup(warmup_iters), steps]


def _warmup(iters: int) -> list[dict[str, Any]]:
    if iters < 2:  # a ramp of one step has nothing to rise from, and LinearLR would stay at its start
        return []
    linear = {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": iters}
    return [linear]


def _undecayed(network: MultiTaskNetwork) -> Iterable[str]:
    for name, module in network.named_modules():
        if isinstance(module, NORM_LAYERS):
            yield from (f"{name}.{part}" for part, _ in module.named_parameters(recurse=False))
    yield from (BACKBONE + name for name in network.backbone.undecayed)
