"""Multi-dataset fine-tuning: one ViT, dense or with experts, on several segmentation datasets at once.

    python md_finetune.py --backbone vit_b_moe --checkpoint vit_b_s4p_upernet.pth       one process
    torchrun --nproc_per_node 2 md_finetune.py --backbone vit_b_moe --checkpoint ...    2 GPUs
    python md_finetune.py --backbone vit_b --tasks loveda potsdam --checkpoint ...      dense, two tasks
    python md_finetune.py ... --resume                                                  go on after a stop

Writes to the work folder: resumable checkpoints, <backbone>_mdf.pth (whole model), the best on average and of
every task, train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

import torch

from s5 import launch
from s5.checkpoints.initial import start_from
from s5.command import run_command
from s5.segmentation import mdf
from s5.segmentation.mdf_config import MDFConfig
from s5.training.command import (
    BACKBONES,
    add_init_bands_option,
    add_resume_option,
    command_parser,
    true_or_false,
)
from s5.training.config import load_config
from s5.training.experiment import run_training
from s5.training.work_dir import find_resume

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/rsseg.yaml", BACKBONES, "vit_b_moe")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="train on these alone (default: all)")
    parser.add_argument(
        "--load-network",
        type=true_or_false,
        default=None,
        metavar="True|False",
        help="start from --checkpoint, or from random weights (default: True where --checkpoint is given)",
    )
    parser.add_argument("--checkpoint", type=Path, help="weights to start from, with or without .pth")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: work_dirs/mdf_<backbone>)")
    add_init_bands_option(parser)
    add_resume_option(parser)
    args = parser.parse_args(argv)
    if args.load_network is None:
        args.load_network = args.checkpoint is not None
    if args.load_network and args.checkpoint is None:
        parser.error("--load-network True needs --checkpoint PATH; to start from random weights: False")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 when done, 128 + n when signal n stopped it."""
    args = parse_args(argv)
    cfg = mdf.select_tasks(load_config(MDFConfig, args.config, args.cfg_options), args.tasks)
    place = launch.start(args.device)
    work_dir = launch.make_work_dir(args.work_dir or Path("work_dirs") / f"mdf_{args.backbone}", place)
    launch.setup_logging(work_dir, place)
    resume_from = find_resume(args.resume, work_dir, place)

    tasks = mdf.build_tasks(cfg)
    tables = {task.name: task.table for task in tasks}
    data = mdf.build_training_data(cfg, tasks, place)
    val_loader = mdf.build_val_loader(cfg, {task.name: task.val for task in tasks}, tables, place)

    torch.manual_seed(cfg.seed)
    model = mdf.build_model(cfg, args.backbone, tables, place.device)
    if resume_from is None:
        start_from(model.segmentor, args.checkpoint if args.load_network else None, cfg.init_bands)
    mdf.check_data(cfg, tasks, work_dir, place)

    steps = mdf.build_steps(cfg, data)
    return run_training(
        place,
        work_dir,
        f"mdf_{args.backbone}",
        model,
        data,
        val_loader,
        mdf.build_metrics(tables),
        cfg.optim,
        mdf.build_schedule(cfg, steps),
        steps,
        mdf.build_hooks(cfg, args.backbone, tables, data, val_loader, place),
        seed=cfg.seed,
        sync_bn=cfg.sync_bn,
        resume_from=resume_from,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
