"""Optimizer groups and learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from s5.backbones import adapted_weight
from s5.errors import ConfigError
from s5.training.guarded_step import GuardedOptimWrapper
from s5.training.model import MultiTaskNetwork

BACKBONE = "backbone."  # prefix of its parameters' names
NORM_LAYERS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def param_groups(
    network: MultiTaskNetwork,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    exempt_norms: bool = True,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    The learning rate of a layer is `lr` times `layer_decay` to the power of its distance from the top, so the
    heads train with the full rate.

    Args:
        network: The network; its backbone maps parameters to layers.
        lr: Full learning rate.
        weight_decay: Weight decay of all parameters that are not exempt.
        layer_decay: Ratio of the learning rates of a backbone layer and the next one, 0 to 1.
        exempt_norms: Exclude norms and `backbone.undecayed` (such as the positional embedding) from weight
            decay.

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
        layer = network.backbone.layer_of(adapted_weight(own)) if own != name else top
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
    """Build a fused AdamW with base learning rate `lr`, and a gradient scaler for fp16.

    The model enters autocast itself, around its forward pass. An outer autocast would compute the losses in
    fp16 and share its cache of cast weights between passes with and without gradients.
    """
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    scaler = torch.amp.GradScaler() if dtype is torch.float16 else None
    return GuardedOptimWrapper(optimizer, clip_grad, scaler)


@PARAM_SCHEDULERS.register_module()
class EpochCosineLR(_ParamScheduler):
    """Cosine decay to zero that is constant within an epoch, like `CosineAnnealingLR` stepped once per epoch.

    Args:
        optimizer: The optimizer whose learning rates are set.
        T_max: Iterations until the rate is zero.
        epoch_iters: Iterations of an epoch; epochs are counted from iteration 0.
        kwargs: `begin` and `end` in iterations, and `by_epoch=False`.
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
    """Cosine decay to zero after an optional linear warm-up, as mmengine scheduler configs.

    Args:
        total_iters: Length of the run in iterations.
        warmup_iters: Iterations of the warm-up.
        epoch_iters: Iterations of an epoch, within which the rate is constant; None updates it every
            iteration.

    Raises:
        ConfigError: The warm-up is not shorter than the run.
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
    """Multiply the rate by `gamma` at each milestone (iterations), after an optional linear warm-up."""
    steps = {"type": "MultiStepLR", "milestones": list(milestones), "gamma": gamma, "by_epoch": False}
    return [*_warmup(warmup_iters), steps]


def _warmup(iters: int) -> list[dict[str, Any]]:
    if iters < 2:  # LinearLR cannot ramp up within one step and would stay at its start factor
        return []
    linear = {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": iters}
    return [linear]


def _undecayed(network: MultiTaskNetwork) -> Iterable[str]:
    for name, module in network.named_modules():
        if isinstance(module, NORM_LAYERS):
            yield from (f"{name}.{part}" for part, _ in module.named_parameters(recurse=False))
    yield from (BACKBONE + name for name in network.backbone.undecayed)
