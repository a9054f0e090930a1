"""Oriented detection: train one backbone, dense or with experts, and an Oriented R-CNN per dataset.

    python tools/train.py configs/obb/oriented_rcnn/mtd/vit_b_moe_dior_r_dota2.py
    torchrun --nproc_per_node 6 tools/train.py CONFIG                                    6 GPUs
    python -m torch.distributed.launch --nproc_per_node=6 tools/train.py CONFIG          the same
    python tools/train.py CONFIG --init vit_b_s4p.pth --cfg-options data_root=/data      override values
    python tools/train.py CONFIG --tasks dota                                            one of its datasets
    python tools/train.py CONFIG --resume                                                resume

Writes to the work folder: resumable checkpoints, <backbone>_det.pth, the best weights on average and for each
task, train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

from s5 import launch
from s5.checkpoints.initial import start_from
from s5.command import run_command
from s5.compat import mmcv_ext
from s5.detection.config import DetConfig
from s5.detection.experiment import DetectionExperiment
from s5.training.command import (
    add_common_options,
    add_training_options,
    initial_weights,
    known_tasks,
)
from s5.training.config import load_python_config
from s5.training.experiment import run
from s5.training.resume import open_work_dir


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="Python configuration")
    add_common_options(parser, "--options")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME", help="tasks to train on (default: all)"
    )
    weights = "none, timm, timm:NAME, hf-hub:OWNER/NAME, or the path of a checkpoint"
    add_training_options(parser, weights, "--load-from", work_dir="<name of config>")
    parser.add_argument("--launcher", choices=["none", "pytorch"], help="ignored: detected automatically")
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit code: 0 when finished, 128 + n when stopped by signal n."""
    args = parse_args(argv)
    cfg = load_python_config(DetConfig, args.config, args.cfg_options)
    tasks = {name: cfg.tasks[name] for name in known_tasks(cfg.tasks, args.tasks, "the configuration")}
    cfg = cfg.model_copy(update={"tasks": tasks})
    processes = launch.start(args.device)
    mmcv_ext.require_device(processes.device.type)
    name = Path(args.config).stem
    work_dir = args.work_dir or Path("work_dirs") / name
    resume_from = open_work_dir(work_dir, processes, args.resume)

    experiment = DetectionExperiment(cfg, processes, work_dir, name)
    experiment.build_data()
    model = experiment.build_model()
    if resume_from is None:
        weights = cfg.load_from if args.init is None else args.init
        start_from(model.detector, initial_weights(weights), cfg.init_bands)
    return run(experiment, resume_from)


if __name__ == "__main__":
    sys.exit(run_command(main))
