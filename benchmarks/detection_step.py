"""Time and peak memory of one step of the two-task detector, against a forward pass for each task.

Plain: the network once for each dataset, one after the other, and one backward pass of the sum. S5: both
datasets in one forward pass. Everything else is the same, the fused attention too.
"""

import argparse
import math
from typing import Any

import torch
from mmengine.optim import OptimWrapper

from benchmarks.steps import Step, StepBenchmark, expert_channels
from s5.compat.memory import keep_freed_memory
from s5.detection.network import DetectionModel, build_detector
from s5.training.optim import build_optim_wrapper, param_groups

TASKS = {"dior": 20, "dota": 18}
OBJECTS = 20  # per image
SMALLEST = 12  # pixels; the largest have a quarter of the image's side


def plain_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build the plain step and its batch: one forward pass per dataset, one backward of the sum."""
    model, optimizer, batch = _parts(args, dtype)
    count = _batch(args)
    slices = [slice(first, first + count) for first in range(0, len(TASKS) * count, count)]
    counts = [{task: count if task == own else 0 for task in TASKS} for own in TASKS]

    def step() -> None:
        losses = []
        for own, part in zip(counts, slices, strict=True):
            one = {name: values[part] for name, values in batch.items()}
            losses.append(model(**one, counts=own, mode="loss")["loss"])
        optimizer.update_params(torch.stack(losses).sum())

    return step


def s5_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build S5's step and its batch."""
    model, optimizer, batch = _parts(args, dtype)
    counts = dict.fromkeys(TASKS, _batch(args))

    def step() -> None:
        with optimizer.optim_context(model):
            loss = model(**batch, counts=counts, mode="loss")["loss"]
        optimizer.update_params(loss)

    return step


def _parts(
    args: argparse.Namespace, dtype: torch.dtype | None
) -> tuple[DetectionModel, OptimWrapper, dict[str, Any]]:
    """The model, its optimizer and a batch of images with objects."""
    if args.device == "cpu":
        keep_freed_memory()  # in both ways
    detector = build_detector(args.backbone, TASKS, args.size, expert_channels=expert_channels(args))
    model = DetectionModel(detector, dtype).to(args.device, memory_format=torch.channels_last).train()
    groups = param_groups(detector, 1e-4, 0.05, 0.9)
    return model, build_optim_wrapper(groups, 1e-4, (0.9, 0.999), dtype, clip_grad=35.0), _data(args)


def _data(args: argparse.Namespace) -> dict[str, Any]:
    images = len(TASKS) * _batch(args)
    pixels = torch.randint(256, (images, 3, args.size, args.size), dtype=torch.uint8, device=args.device)
    return {
        "images": pixels.contiguous(memory_format=torch.channels_last),
        "boxes": [_boxes(args.size) for _ in range(images)],
        "labels": [torch.randint(min(TASKS.values()), (OBJECTS,)) for _ in range(images)],
        "ignored": [torch.zeros(0, 5)] * images,
        "shapes": [(args.size, args.size)] * images,
        "scales": [1.0] * images,
    }


def _boxes(size: int) -> torch.Tensor:
    """Boxes (OBJECTS, 5) anywhere in an image, the width the longer side."""
    draws = torch.rand(OBJECTS, 5)
    sides = (SMALLEST + draws[:, 2:4] * (size / 4 - SMALLEST)).sort(descending=True).values
    return torch.cat((draws[:, :2] * size, sides, (draws[:, 4:] - 0.5) * math.pi), dim=1)


def _batch(args: argparse.Namespace) -> int:
    return max(args.batch, 2)  # as published


BENCHMARK = StepBenchmark(
    "benchmarks.detection_step",
    plain_step,
    s5_step,
    lambda args: (
        f"Detection step, {args.backbone} with {expert_channels(args)} expert channels, "
        f"{len(TASKS)} datasets, {_batch(args)} images of {args.size}² with {OBJECTS} objects each"
    ),
    lambda args: len(TASKS) * _batch(args),
)

if __name__ == "__main__":
    BENCHMARK.main(__doc__)
