"""S4P pre-training: FixMatch on labeled and unlabeled aerial images.

    python train.py --config configs/pretrain.yaml --backbone vit_b --init mae             one process
    torchrun --nproc_per_node 8 train.py --backbone vit_b --init mae                       8 GPUs
    python train.py --device cpu --backbone vit_t --init none --cfg-options data_root=...  no GPU
    python train.py ... --resume                                                           resume

Writes to the work folder: resumable checkpoints, <backbone>_s4p.pth (backbone), <backbone>_s4p_upernet.pth
(full model), train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import sys
from pathlib import Path

from s5 import launch
from s5.backbones import file_name
from s5.checkpoints.initial import initialise
from s5.command import run_command
from s5.segmentation.s4p import S4PExperiment
from s5.segmentation.s4p_config import S4PConfig
from s5.training.command import add_training_options, command_parser
from s5.training.config import load_config
from s5.training.experiment import run
from s5.training.resume import open_work_dir

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/pretrain.yaml")
    weights = "none, mae, timm, timm:NAME, hf-hub:OWNER/NAME, or the path of a checkpoint"
    add_training_options(parser, weights, work_dir="s4p_<backbone>")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit code: 0 when finished, 128 + n when stopped by signal n."""
    args = parse_args(argv)
    cfg = load_config(S4PConfig, args.config, args.cfg_options, backbone=args.backbone, init=args.init)
    processes = launch.start(args.device)
    work_dir = args.work_dir or Path("work_dirs") / f"s4p_{file_name(cfg.backbone)}"
    resume_from = open_work_dir(work_dir, processes, args.resume)

    experiment = S4PExperiment(cfg, processes, work_dir)
    experiment.build_data()
    model = experiment.build_model()
    if resume_from is None:
        initialise(model.segmentor, cfg.backbone, cfg.init, cfg.init_paths, HERE.parent, cfg.init_bands)
        model.restart_teacher()
    return run(experiment, resume_from)


if __name__ == "__main__":
    sys.exit(run_command(main))
