"""Time and peak memory of one MoE-MDF step on four datasets, against a plain reference implementation.

Plain: the network once for each dataset, one after the other, and attention that is not fused. S5: all
datasets in one forward pass. The optimizer is the same.
"""

import argparse
from contextlib import nullcontext

import torch
from mmengine.optim import OptimWrapper

from benchmarks.plain_step import use_plain_attention
from benchmarks.steps import Step, StepBenchmark, expert_channels
from s5.ops.losses import pixel_cross_entropy
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.training.optim import build_optim_wrapper, param_groups

TASKS = {"vaihingen": 5, "potsdam": 5, "openearthmap": 9, "loveda": 7}


def plain_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build the plain step and its batch: one forward pass per dataset, one backward of the sum."""
    segmentor = _segmentor(args)
    use_plain_attention(segmentor)
    segmentor.to(args.device).train()
    optimizer = _optimizer(segmentor, dtype)
    images = torch.randn(len(TASKS), _batch(args), 3, args.size, args.size, device=args.device)
    labels = _labels(args).view(len(TASKS), _batch(args), args.size, args.size).long()

    def step() -> None:
        losses = []
        for task, x, y in zip(TASKS, images, labels, strict=True):
            with nullcontext() if dtype is None else torch.autocast(torch.device(args.device).type, dtype):
                logits = segmentor(x, task)
            losses.append(pixel_cross_entropy(logits, y))
        optimizer.update_params(torch.stack(losses).sum())

    return step


def s5_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build S5's step and its batch of uint8 images."""
    model = MultiDataset(_segmentor(args), {}, {task: TaskLoss() for task in TASKS}, dtype)
    model.to(args.device, memory_format=torch.channels_last).train()
    optimizer = _optimizer(model.segmentor, dtype)
    shape = (len(TASKS) * _batch(args), 3, args.size, args.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels, counts = _labels(args), dict.fromkeys(TASKS, _batch(args))

    def step() -> None:
        with optimizer.optim_context(model):
            loss = model.loss(images, labels, counts)["loss"]
        optimizer.update_params(loss)

    return step


def _batch(args: argparse.Namespace) -> int:
    return max(args.batch, 2)  # batch norm in a decoder compares images


def _optimizer(segmentor: Segmentor, dtype: torch.dtype | None) -> OptimWrapper:
    groups = param_groups(segmentor, 5e-5, 0.05, 0.9)
    return build_optim_wrapper(groups, 5e-5, (0.9, 0.999), dtype)


def _segmentor(args: argparse.Namespace) -> Segmentor:
    return build_segmentor(args.backbone, TASKS, args.size, expert_channels=expert_channels(args))


def _labels(args: argparse.Namespace) -> torch.Tensor:
    shape = (len(TASKS) * _batch(args), args.size, args.size)
    return torch.randint(min(TASKS.values()), shape, dtype=torch.uint8, device=args.device)


BENCHMARK = StepBenchmark(
    "benchmarks.mdf_step",
    plain_step,
    s5_step,
    lambda args: (
        f"MoE-MDF step, {args.backbone} with {expert_channels(args)} expert channels, {len(TASKS)} datasets, "
        f"{_batch(args)} images of {args.size}² each"
    ),
    lambda args: len(TASKS) * _batch(args),
)

if __name__ == "__main__":
    BENCHMARK.main(__doc__)
