"""S4P pre-training: FixMatch on labeled and unlabeled aerial images.

    python train.py --config configs/pretrain.yaml --backbone vit_b --init mae             one process
    torchrun --nproc_per_node 8 train.py --backbone vit_b --init mae                       8 GPUs
    python train.py --device cpu --backbone vit_t --init none --cfg-options data_root=...  no GPU
    python train.py ... --resume                                                           go on after a stop

Writes to the work folder: resumable checkpoints, <backbone>_s4p.pth (backbone), <backbone>_s4p_upernet.pth
(whole model), train.log, log.jsonl, tensorboard/, pictures/, config.yaml, final_metrics.json.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from mmengine.evaluator import Evaluator

from s5.data.build import stop_workers
from s5.data.labels import get_table
from s5.engine import launch, s4p
from s5.engine.checkpoint_files import find_resume
from s5.engine.command import command_parser, run_command
from s5.engine.config import load_config, save_config
from s5.engine.init_weights import initialise
from s5.engine.log_backends import build_visualizer
from s5.engine.metrics import SegmentationMetric
from s5.engine.optim import build_optim_wrapper, cosine_schedule, param_groups
from s5.engine.runner import S5Runner, log_options
from s5.engine.s4p_config import S4PConfig

HERE = Path(__file__).resolve().parent

logger = logging.getLogger("s5.train")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/pretrain.yaml")
    parser.add_argument("--init", default="mae", help="none, mae, timm, or the path of a checkpoint")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: work_dirs/s4p_<backbone>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        help="go on from the latest checkpoint of the work folder, or from PATH",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 when done, 128 + n when signal n stopped it."""
    args = parse_args(argv)
    cfg = load_config(S4PConfig, args.config, args.cfg_options)
    place = launch.start(args.device)
    work_dir = launch.make_work_dir(args.work_dir or Path("work_dirs") / f"s4p_{args.backbone}", place)
    launch.setup_logging(work_dir, place)
    resume_from = find_resume(args.resume, work_dir, place)
    if place.is_main:
        save_config(cfg, work_dir / "config.yaml")

    table = get_table(cfg.data.labels)
    data = s4p.build_training_data(cfg, table, place)
    val_loader = s4p.build_val_loader(cfg, table)
    s4p.check_data(cfg, table, work_dir, place)

    torch.manual_seed(cfg.seed)
    model = s4p.build_model(cfg, args.backbone, table.num_classes, place.device)
    if resume_from is None:
        initialise(model.segmentor, args.backbone, args.init, cfg.init_paths, HERE.parent, args.allow_pickle)
        model.restart_teacher()

    groups = param_groups(model.segmentor, cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.layer_decay)
    batch = data.sampler.batch_size * place.world_size
    logger.info("%s on %s, precision %s", args.backbone, place.device, model.dtype or "float32")
    logger.info("learning rate %g, %d images a step (%d processes)", cfg.optim.lr, batch, place.world_size)

    safety, hooks = s4p.build_hooks(cfg, args.backbone, table, data, place)
    runner = S5Runner(
        launch=place,
        model=model,
        work_dir=str(work_dir),
        train_dataloader=data.loader,
        val_dataloader=val_loader,
        train_cfg={
            "by_epoch": False,
            "max_iters": cfg.schedule.total_iters,
            "val_interval": cfg.schedule.val_interval,
        },
        val_cfg={},
        val_evaluator=Evaluator(SegmentationMetric(table)),
        optim_wrapper=build_optim_wrapper(
            groups, cfg.optim.lr, cfg.optim.betas, model.dtype, cfg.optim.clip_grad
        ),
        param_scheduler=cosine_schedule(cfg.schedule.total_iters, cfg.optim.warmup_iters),
        custom_hooks=hooks,
        **log_options(cfg.schedule.log_interval),
        visualizer=build_visualizer(work_dir, f"s4p_{args.backbone}"),
        load_from=None if resume_from is None else str(resume_from),
        resume=resume_from is not None,
        randomness={"seed": cfg.seed},
        cfg={"sync_bn": cfg.sync_bn},
    )
    with safety:
        runner.train()
    stop_workers(data.loader, val_loader)
    if safety.stopped_by is not None:
        logger.info("stopped by %s at iteration %d; go on with --resume", safety.stopped_by.name, runner.iter)
        return 128 + safety.stopped_by
    logger.info("done; weights, log and pictures are in %s", work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
