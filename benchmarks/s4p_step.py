"""Time and peak memory of one S4P step, against a plain reference implementation."""

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.plain_step import PlainStep, use_plain_attention
from benchmarks.steps import Step, StepBenchmark
from s5.data.augmentation import StrongAugmentation, derangement, draw_cutmix_box, draw_photometric
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.segmentor import build_segmentor
from s5.training.optim import build_optim_wrapper, param_groups

NUM_CLASSES = 16


def plain_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build the plain step and its batch."""
    segmentor = build_segmentor(args.backbone, {"task": NUM_CLASSES}, args.size)
    use_plain_attention(segmentor)
    step = PlainStep(segmentor.to(args.device), dtype)
    shape = (args.batch, 3, args.size, args.size)
    names = ("labeled", "weak", "weak_mix", "strong", "strong_mix")
    batch = {name: torch.randn(shape, device=args.device) for name in names}
    batch["labels"] = torch.randint(NUM_CLASSES, (args.batch, args.size, args.size), device=args.device)
    batch["boxes"] = _draws(args)["boxes"][0].to(args.device)
    return lambda: step(batch)


def s5_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    """Build S5's step and its batch: uint8 images and augmentation parameters, augmented within the step."""
    segmentor = build_segmentor(args.backbone, {"task": NUM_CLASSES}, args.size)
    model = FixMatch(segmentor, {}, dtype).to(args.device, memory_format=torch.channels_last).train()
    optimizer = build_optim_wrapper(param_groups(segmentor, 5e-5, 0.01), 5e-5, (0.9, 0.999), dtype)
    square = (args.size, args.size)
    batch: dict[str, Any] = {
        "images": torch.randint(256, (2 * args.batch, 3, *square), dtype=torch.uint8, device=args.device),
        "labels": torch.randint(NUM_CLASSES, (args.batch, *square), dtype=torch.uint8, device=args.device),
        "padding": torch.zeros(args.batch, *square, dtype=torch.bool, device=args.device),
        "views": {name: value.to(args.device) for name, value in _draws(args).items()},
    }

    def step() -> None:
        with optimizer.optim_context(model):
            losses = model.loss(**batch)
        optimizer.update_params(losses["loss"])

    return step


def draws(
    rng: np.random.Generator, cfg: StrongAugmentation, images: int, size: int
) -> dict[str, torch.Tensor]:
    """Random parameters of the strong views of a batch, as :class:`s5.data.loaders.FixMatchCollate` draws."""
    views: dict[str, list[np.ndarray]] = {"photometric": [], "boxes": [], "partner": []}
    for _ in range(cfg.views):
        views["photometric"].append(np.stack([draw_photometric(rng, cfg) for _ in range(images)]))
        views["boxes"].append(np.stack([draw_cutmix_box(rng, size, cfg) for _ in range(images)]))
        views["partner"].append(derangement(rng, images))
    return {name: torch.from_numpy(np.stack(values)) for name, values in views.items()}


def _draws(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    return draws(np.random.default_rng(0), StrongAugmentation(), args.batch, args.size)


BENCHMARK = StepBenchmark(
    "benchmarks.s4p_step",
    plain_step,
    s5_step,
    lambda args: (
        f"S4P step, {args.backbone} + UperNet, {args.batch} labeled + {args.batch} unlabeled images "
        f"of {args.size}²"
    ),
    lambda args: 2 * args.batch,
)

if __name__ == "__main__":
    BENCHMARK.main(__doc__)
