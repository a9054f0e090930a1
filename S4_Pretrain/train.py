"""S4P pre-training: FixMatch on labeled and unlabeled aerial images.

    python train.py --config configs/pretrain.yaml --backbone vit_b --init mae             one process
    torchrun --nproc_per_node 8 train.py --backbone vit_b --init mae                       8 GPUs
    python train.py --device cpu --backbone vit_t --init none --cfg-options data_root=...  no GPU
    python train.py ... --resume                                                           go on after a stop

Writes to the work folder: resumable checkpoints, <backbone>_s4p.pth (backbone), <backbone>_s4p_upernet.pth
(whole model), train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

import torch

from s5 import launch
from s5.checkpoints.initial import initialise
from s5.command import run_command
from s5.data.labels import get_table
from s5.segmentation import s4p
from s5.segmentation.metrics import SegmentationMetric
from s5.segmentation.s4p_config import S4PConfig
from s5.training.command import add_init_bands_option, add_resume_option, command_parser
from s5.training.config import load_config
from s5.training.experiment import run_training
from s5.training.optim import cosine_schedule
from s5.training.work_dir import find_resume

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/pretrain.yaml")
    parser.add_argument("--init", default="mae", help="none, mae, timm, or the path of a checkpoint")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: work_dirs/s4p_<backbone>)")
    add_init_bands_option(parser)
    add_resume_option(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 when done, 128 + n when signal n stopped it."""
    args = parse_args(argv)
    cfg = load_config(S4PConfig, args.config, args.cfg_options)
    place = launch.start(args.device)
    work_dir = launch.make_work_dir(args.work_dir or Path("work_dirs") / f"s4p_{args.backbone}", place)
    launch.setup_logging(work_dir, place)
    resume_from = find_resume(args.resume, work_dir, place)

    table = get_table(cfg.data.labels)
    data = s4p.build_training_data(cfg, table, place)
    val_loader = s4p.build_val_loader(cfg, table, place)

    torch.manual_seed(cfg.seed)
    model = s4p.build_model(cfg, args.backbone, table.num_classes, place.device)
    if resume_from is None:
        initialise(model.segmentor, args.backbone, args.init, cfg.init_paths, HERE.parent, cfg.init_bands)
        model.restart_teacher()
    s4p.check_data(cfg, table, work_dir, place)

    return run_training(
        place,
        work_dir,
        f"s4p_{args.backbone}",
        model,
        data,
        val_loader,
        [SegmentationMetric(table, s4p.TASK)],
        cfg.optim,
        cosine_schedule(cfg.schedule.total_iters, cfg.optim.warmup_iters),
        s4p.build_steps(cfg),
        s4p.build_hooks(cfg, args.backbone, table, data, place),
        seed=cfg.seed,
        sync_bn=cfg.sync_bn,
        resume_from=resume_from,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
