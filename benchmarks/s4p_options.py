"""Time of an S4P step with each option of the pseudo-labels, beside published FixMatch and labels alone.

    python -m benchmarks.s4p_options --backbone timm:tf_efficientnet_lite0 --size 128 --batch 4 --threads 1

The options are those of the arms of `experiments.generated_scenes`. All models are in one process and take
turns, so that other load hits all of them.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.s4p_step import NUM_CLASSES, draws
from benchmarks.steps import add_arguments
from benchmarks.timing import clock, device_name, interleaved, markdown_table
from experiments.generated_scenes import ARMS, CONFIG, arm_options
from s5.compat.memory import keep_freed_memory
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import build_segmentor
from s5.training.config import load_config
from s5.training.optim import build_optim_wrapper, param_groups

PUBLISHED = "fixmatch"
SAME_AS_OTHERS = ("labels, equal time", "bound")  # in the time of a step
STEPS = 1000  # of the run that arms are written for; all of these are after its ramp


def run(args: argparse.Namespace) -> str:
    """Measure all options in turn; returns the table, with ratios to published FixMatch."""
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()  # as in every training run
    steps = {arm: build(arm, args) for arm in ARMS if arm not in SAME_AS_OTHERS}
    seconds = interleaved(steps, args.repeats, clock(args.device, args.threads))
    rows = [(arm, seconds[arm], seconds[arm] / seconds[PUBLISHED]) for arm in steps]
    threads = f", {args.threads} thread(s)" if args.threads and args.device == "cpu" else ""
    title = (
        f"S4P step, {args.backbone} + UperNet, {args.batch} labeled + {args.batch} unlabeled images of "
        f"{args.size}², float32. Device: {device_name(args.device)}{threads}."
    )
    return f"{title}\n\n{markdown_table(('options', 'seconds', f'ratio to {PUBLISHED}'), rows)}"


def build(arm: str, args: argparse.Namespace) -> Callable[[], None]:
    """A model with the options of an arm, and its training step on random images."""
    cfg = load_config(S4PConfig, CONFIG, arm_options(arm, STEPS), backbone=args.backbone)
    segmentor = build_segmentor(args.backbone, {"task": NUM_CLASSES}, args.size, channels=64)
    model = FixMatch(segmentor, {}, None, cfg.settings)
    model = model.to(args.device, memory_format=torch.channels_last).train()
    model.iteration = STEPS
    optimizer = build_optim_wrapper(param_groups(segmentor, 5e-5, 0.01), 5e-5, (0.9, 0.999), None)
    unlabeled = args.batch if cfg.data.unlabeled.batch_size else 0
    square, no = (args.size, args.size), torch.zeros((), dtype=torch.bool, device=args.device)

    def pixels(images: int, values: int, *channels: int) -> torch.Tensor:
        shape = (images, *channels, *square)
        return torch.randint(values, shape, dtype=torch.uint8, device=args.device)

    batch: dict[str, Any] = {
        "images": pixels(args.batch + unlabeled, 256, 3),
        "labels": pixels(args.batch, NUM_CLASSES),
    }
    if unlabeled:
        rng = np.random.default_rng(0)
        views = draws(rng, cfg.settings.strong, unlabeled, args.size)
        batch["padding"] = pixels(unlabeled, 1).bool()
        batch["views"] = {name: value.to(args.device) for name, value in views.items()}
    if cfg.settings.pseudo_labels == "stored":
        batch["stored"] = pixels(unlabeled, NUM_CLASSES)

    def step() -> None:
        with optimizer.optim_context(model):
            losses = model.loss(**batch)
        optimizer.update_params(losses["loss"])
        model.after_step(no)
        if args.device != "cpu":
            torch.cuda.synchronize(args.device)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.s4p_options",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=10, help="rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
