"""Oriented detection: one ViT, dense or with experts, and an Oriented R-CNN per dataset, trained at once.

    python tools/train.py configs/obb/oriented_rcnn/mtd/vit_b_moe_dior_r_dota2.py
    torchrun --nproc_per_node 6 tools/train.py CONFIG                                    6 GPUs
    python -m torch.distributed.launch --nproc_per_node=6 tools/train.py CONFIG          the same
    python tools/train.py CONFIG --cfg-options data_root=/data load_from=vit_b_s4p.pth   other values
    python tools/train.py CONFIG --resume                                                go on after a stop

Writes to the work folder: resumable checkpoints, <backbone>_det.pth, the best on average and of every task,
train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

import torch

from s5 import launch
from s5.checkpoints.initial import start_from
from s5.command import run_command
from s5.compat import mmcv_ext
from s5.detection import experiment as det
from s5.detection.config import DetConfig
from s5.detection.metric import build_metrics
from s5.training.command import add_common_options, add_init_bands_option, add_resume_option
from s5.training.config import load_python_config
from s5.training.experiment import run_training
from s5.training.work_dir import find_resume


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="Python configuration")
    add_common_options(parser, "--options")
    parser.add_argument("--load-from", type=Path, help="weights to start from, for load_from of CONFIG")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: work_dirs/<name of config>)")
    add_init_bands_option(parser)
    add_resume_option(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch"], help="not needed: seen by itself")
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 when done, 128 + n when signal n stopped it."""
    args = parse_args(argv)
    cfg = load_python_config(DetConfig, args.config, args.cfg_options)
    place = launch.start(args.device)
    mmcv_ext.require_device(place.device.type)
    work_dir = launch.make_work_dir(args.work_dir or Path("work_dirs") / Path(args.config).stem, place)
    launch.setup_logging(work_dir, place)
    resume_from = find_resume(args.resume, work_dir, place)

    classes = det.build_classes(cfg)
    data = det.build_training_data(cfg, classes, place)
    val_loader = det.build_val_loader(cfg, classes, place)
    metrics = build_metrics(cfg, classes, val_loader)

    torch.manual_seed(cfg.seed)
    model = det.build_model(cfg, classes, place.device)
    if resume_from is None:
        start_from(model.detector, args.load_from or cfg.load_from, cfg.init_bands)

    return run_training(
        place,
        work_dir,
        Path(args.config).stem,
        model,
        data,
        val_loader,
        metrics,
        cfg.optim,
        det.build_schedule(cfg, data),
        det.build_steps(cfg, data),
        det.build_hooks(cfg, classes, data, place),
        seed=cfg.seed,
        resume_from=resume_from,
        sync_bn=cfg.sync_bn,
        find_unused_parameters=cfg.find_unused_parameters,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
