"""Measure the speed of training on this machine, and say how long the stages of the quickstart will take.

    python -m experiments.quickstart_plan [options of S4_Pretrain/train.py]

Times steps of S4P on the quickstart's scenes. If all stages together would exceed 15 minutes, they are
shortened. The plan goes to stderr, and the share of the steps to train, in percent, to stdout.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from itertools import islice, pairwise

import torch

from experiments.training_runs import REPO
from s5 import launch
from s5.command import run_command
from s5.data.loaders import stop_workers
from s5.segmentation.s4p import S4PExperiment
from s5.segmentation.s4p_config import S4PConfig
from s5.training.command import add_training_options, command_parser
from s5.training.config import load_config
from s5.training.optim import build_optim_wrapper, param_groups

VARIABLE = "S5_QUICKSTART"
CONFIG = REPO / "configs/quickstart.yaml"
LIMIT = 15 * 60  # seconds for all stages
SHORTEST = 30  # percent of the steps; with fewer, nothing is learned
FIRST, TIMED = 3, 8  # steps to warm up and to time

LABELS_ALONE = 0.37  # a step on labels alone, in steps of S4P with as many unlabeled images and two views
OTHER_STAGES = {"fine-tuning": 310.0, "detection": 630.0}
"""Training time of these stages in steps of S4P, from the times of steps on two cores."""

FIXED_STEPS, FIXED_SECONDS = 120.0, 80.0
"""Curation, scores and pictures, in steps of S4P, and the start of all commands: a rough estimate."""


def stages(iters: int) -> dict[str, float]:
    """Training time of each stage in steps of S4P, given the length of a run of S4P."""
    # Two runs on labels alone: the model that S4P starts from, and the comparison.
    return {"S4P": iters, "labels alone": 2 * iters * LABELS_ALONE, **OTHER_STAGES}


def seconds_per_step(args: argparse.Namespace, cfg: S4PConfig) -> float:
    """Median time of a step of S4P after its warm-up."""
    processes = launch.start(args.device)
    experiment = S4PExperiment(cfg, processes)
    experiment.build_data()
    model = experiment.build_model().to(processes.device, memory_format=torch.channels_last).train()
    model.iteration = cfg.schedule.total_iters
    groups = param_groups(model.network, cfg.optim.lr, cfg.optim.weight_decay)
    optimizer = build_optim_wrapper(groups, cfg.optim.lr, cfg.optim.betas, model.dtype, cfg.optim.clip_grad)
    times = [time.perf_counter()]
    for batch in islice(experiment.data.loader, FIRST + TIMED):
        model.train_step(batch, optimizer)
        if processes.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    stop_workers(experiment.data.loader)
    return statistics.median(end - start for start, end in pairwise(times[FIRST:]))


def plan(step: float, iters: int = 500, whole_run: bool = False) -> tuple[int, str]:
    """Choose the share of the steps to train.

    Args:
        step: Seconds of a step of S4P.
        iters: Steps of a run of S4P.
        whole_run: Train all steps, however long it takes.

    Returns:
        The share in percent, and the plan as text.
    """
    training = {name: steps * step for name, steps in stages(iters).items()}
    whole, rest = sum(training.values()), FIXED_STEPS * step + FIXED_SECONDS
    percent = 100 if whole_run else min(100, max(SHORTEST, int(100 * (LIMIT - rest) / whole)))
    parts = [f"{name} {_duration(seconds * percent / 100)}" for name, seconds in training.items()]
    expected = whole * percent / 100 + rest
    lines = [
        f"A step of S4P takes {step:.2f} s here. Expected: {', '.join(parts)}; "
        f"with scores and pictures {_duration(expected)} in all."
    ]
    if percent < 100:
        limit = f"{LIMIT // 60} minutes"
        why = f"this machine is too slow for {limit}" if expected > 1.05 * LIMIT else f"to stay near {limit}"
        lines.append(
            f"All stages train {percent} % of their steps ({why}; all steps would take "
            f"{_duration(whole + rest)}); scores will be lower than in the README. "
            f"{VARIABLE}=whole trains all steps."
        )
    return percent, "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the plan."""
    parser = command_parser(__doc__, CONFIG)
    add_training_options(parser, "ignored here", work_dir="quickstart")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    try:
        cfg = load_config(S4PConfig, args.config, args.cfg_options, backbone=args.backbone, init=args.init)
        iters = cfg.schedule.total_iters
        percent, text = plan(seconds_per_step(args, cfg), iters, os.environ.get(VARIABLE) == "whole")
    finally:
        logging.disable(logging.NOTSET)
    print(text, file=sys.stderr)
    print(percent)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
