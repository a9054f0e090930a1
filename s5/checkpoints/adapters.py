"""LoRA adapters in checkpoints: fitting them to a model, and merging them into plain weights of one task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from s5.backbones import (
    EXPERT_KEY,
    LORA_KEY,
    Backbone,
    StateDict,
    adapter_names,
    dense_name,
    join_experts,
    lora_of,
    merge_adapters,
)
from s5.checkpoints.layouts import Weights
from s5.errors import CheckpointError


def fit_adapters(tensors: StateDict, backbone: Backbone) -> tuple[StateDict, list[str]]:
    """Adapt weights with or without adapters to a backbone with or without adapters.

    Weights without adapters fit any backbone, whose adapters then change nothing at first. The adapters of a
    single task that the backbone does not have are merged. Adapters of other tasks are dropped if the
    weights have those of all tasks of the backbone.

    Args:
        tensors: Weights of the backbone's architecture, under its names.
        backbone: The backbone to load them into.

    Returns:
        The tensors, and notes on the changes.

    Raises:
        CheckpointError: The adapters are for other tasks, or have another rank, scale or layers.
    """
    stored = adapter_names(tensors)
    if not stored:
        return tensors, [
            "no LoRA adapters in the checkpoint: those of the model change nothing at first"
        ] if backbone.adapters else []
    has = f"the checkpoint has LoRA adapters for {', '.join(stored)}"
    remedy = "merge one task into plain weights: python -m s5.convert FILE NEW.pth --to s5 --task NAME"
    if not set(stored) & set(backbone.adapters):
        if len(stored) == 1:
            return merge_adapters(tensors, stored[0]), [
                f"LoRA adapters of {stored[0]} merged into the weights"
            ]
        own = f"for {', '.join(backbone.adapters)}" if backbone.adapters else "none (model.finetune)"
        raise CheckpointError(f"{has}, the model has {own}; train the same tasks with LoRA, or {remedy}")
    if missing := [task for task in backbone.adapters if task not in stored]:
        raise CheckpointError(
            f"{has}, but none for {', '.join(missing)}, which the model has; train only tasks of the "
            f"checkpoint, or {remedy}"
        )
    _check_settings(tensors, backbone)
    others = [task for task in stored if task not in backbone.adapters]
    notes = [f"LoRA adapters of {', '.join(others)} left out"] if others else []
    kept = {name: value for name, value in tensors.items() if _task(name) not in others}
    return kept, notes


def reduce_to_task(
    weights: Weights, meta: Mapping[str, Any] | None, task: str | None, keep: bool
) -> tuple[Weights, dict[str, Any] | None]:
    """Reduce weights to plain ones of one task: merge its adapters and experts, and keep its head only.

    Args:
        weights: The weights.
        meta: Metadata of the file, if any.
        task: Name of the task; None changes nothing but weights with adapters. Those of a single task are
            merged.
        keep: Whether adapters of several tasks are kept without `task`.

    Raises:
        CheckpointError: The task is unknown, or is needed because there are adapters of several tasks.
    """
    stored, meta = adapter_names(weights.backbone), None if meta is None else dict(meta)
    tasks = stored or weights.experts or tuple(weights.heads)
    if task is None:
        if len(stored) > 1 and not keep:
            raise CheckpointError(
                f"LoRA adapters for {', '.join(stored)}, which this layout does not have: choose a task with "
                f"--task to merge its adapters, or keep all with --to s5"
            )
        if len(stored) == 1:
            weights = _merged(weights, stored[0])
        return weights, meta
    if task not in tasks:
        raise CheckpointError(f"--task {task}: the checkpoint has {', '.join(tasks) or 'no tasks'}")
    weights = _merged(weights, task) if stored else weights
    others = [name for name in weights.backbone if (match := EXPERT_KEY.match(name)) and match[1] != task]
    heads = {name: head for name, head in weights.heads.items() if name == task or len(weights.heads) == 1}
    others += [
        f"heads.{name}.{key}" for name, head in weights.heads.items() if name not in heads for key in head
    ]
    backbone = join_experts(weights.backbone, task)
    weights = replace(weights, backbone=backbone, heads=heads, unused=(*weights.unused, *others))
    return weights, None if meta is None else _meta_of(meta, task)


def _merged(weights: Weights, task: str) -> Weights:
    others = [name for name in weights.backbone if _task(name) not in (None, task)]
    return replace(
        weights,
        backbone=merge_adapters(weights.backbone, task),
        unused=(*weights.unused, *others),
        notes=(*weights.notes, f"LoRA adapters of {task} merged into the weights"),
    )


def _meta_of(meta: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Metadata of the plain weights of one task."""
    tasks = set(meta.get("tasks") or (task,))
    own = {
        key: {task: value[task]} if isinstance(value, Mapping) and set(value) == tasks else value
        for key, value in meta.items()
    }
    return own | {"backbone": dense_name(str(meta["backbone"])), "expert_channels": 0}


def _task(name: str) -> str | None:
    match = LORA_KEY.match(name)
    return match[2] if match else None


def _check_settings(tensors: StateDict, backbone: Backbone) -> None:
    there, here = lora_of(tensors), lora_of(backbone.state_dict())
    assert there is not None and here is not None
    for key in ("rank", "alpha"):
        stored, own = getattr(there, key), getattr(here, key)
        if stored != own:
            raise CheckpointError(
                f"LoRA adapters with {key} {stored:g} in the checkpoint, {own:g} in the model: set "
                f"model.lora.{key}={stored:g}"
            )
    if set(there.targets) != set(here.targets):
        raise CheckpointError(
            f"LoRA adapters of {_ends(there.targets)} in the checkpoint, of {_ends(here.targets)} in the "
            f"model: set model.lora.targets=[{_ends(there.targets)}]"
        )


def _ends(layers: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(".".join(name.split(".")[-2:]) for name in layers))
