"""Multi-dataset fine-tuning: train one backbone, dense or with experts, on several segmentation datasets.

    python md_finetune.py --backbone vit_b_moe --init vit_b_s4p_upernet.pth       one process
    torchrun --nproc_per_node 2 md_finetune.py --backbone vit_b_moe --init ...    2 GPUs
    python md_finetune.py --backbone vit_b --tasks loveda potsdam --init ...      dense, two tasks
    python md_finetune.py ... --resume                                            resume

Writes to the work folder: resumable checkpoints, <backbone>_mdf.pth (full model), the best weights on average
and for every task, train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

from s5 import launch
from s5.backbones import file_name
from s5.checkpoints.initial import start_from
from s5.command import run_command
from s5.errors import ConfigError
from s5.segmentation.mdf import MDFExperiment, select_tasks
from s5.segmentation.mdf_config import MDFConfig
from s5.training.command import (
    add_training_options,
    command_parser,
    initial_weights,
    true_or_false,
)
from s5.training.config import load_config
from s5.training.experiment import run
from s5.training.resume import open_work_dir

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/rsseg.yaml", experts=True)
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks to train on (default: all)")
    parser.add_argument(
        "--load-network",
        type=true_or_false,
        metavar="True|False",
        help="start from --init, or from random weights (default: from --init, if there is one)",
    )
    weights = "none, timm, timm:NAME, hf-hub:OWNER/NAME, or the path of a checkpoint"
    add_training_options(parser, weights, "--checkpoint", work_dir="mdf_<backbone>")
    args = parser.parse_args(argv)
    if args.load_network is False:
        args.init = "none"
    return args


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit code: 0 when finished, 128 + n when stopped by signal n."""
    args = parse_args(argv)
    cfg = load_config(MDFConfig, args.config, args.cfg_options, backbone=args.backbone, init=args.init)
    cfg = select_tasks(cfg, args.tasks)
    if args.load_network and initial_weights(cfg.init) is None:
        raise ConfigError(
            "--load-network True needs --init CHECKPOINT; use False to start from random weights"
        )
    processes = launch.start(args.device)
    work_dir = args.work_dir or Path("work_dirs") / f"mdf_{file_name(cfg.backbone)}"
    resume_from = open_work_dir(work_dir, processes, args.resume)

    experiment = MDFExperiment(cfg, processes, work_dir)
    experiment.build_data()
    model = experiment.build_model()
    if resume_from is None:
        start_from(model.segmentor, initial_weights(cfg.init), cfg.init_bands)
    return run(experiment, resume_from)


if __name__ == "__main__":
    sys.exit(run_command(main))
