"""Scores a checkpoint of S4P (or a published one) on a labeled split.

    python evaluate.py work_dirs/s4p_vit_b/vit_b_s4p_upernet.pth --cfg-options data_root=/data/S5
    torchrun --nproc_per_node 8 evaluate.py ...                                   the same numbers, sooner

Prints the scores of every class and writes them, with pictures, to the work folder.
"""

import argparse
import logging
import sys
from pathlib import Path

from mmengine.evaluator import Evaluator

from s5.data.build import stop_workers
from s5.data.labels import get_table
from s5.engine import launch, s4p
from s5.engine.checkpoint import load_weights
from s5.engine.command import command_parser, run_command
from s5.engine.config import load_config
from s5.engine.hooks import PicturesHook, SummaryHook
from s5.engine.log_backends import build_visualizer
from s5.engine.metrics import SegmentationMetric
from s5.engine.runner import S5Runner, log_options
from s5.engine.s4p_config import S4PConfig

HERE = Path(__file__).resolve().parent

logger = logging.getLogger("s5.evaluate")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/pretrain.yaml")
    parser.add_argument("checkpoint", type=Path, help="whole model: <backbone>_s4p_upernet.pth")
    parser.add_argument(
        "--work-dir", type=Path, help="output folder (default: evaluation/ beside the checkpoint)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Evaluate; returns 0."""
    args = parse_args(argv)
    cfg = load_config(S4PConfig, args.config, args.cfg_options)
    place = launch.start(args.device)
    work_dir = launch.make_work_dir(args.work_dir or args.checkpoint.parent / "evaluation", place)
    launch.setup_logging(work_dir, place)

    table = get_table(cfg.data.labels)
    model = s4p.build_model(cfg, args.backbone, table.num_classes, place.device)
    load_weights(model.segmentor, args.checkpoint, allow_pickle=args.allow_pickle).require_heads()
    loader = s4p.build_val_loader(cfg, table, place)
    runner = S5Runner(
        launch=place,
        model=model,
        work_dir=str(work_dir),
        val_dataloader=loader,
        val_cfg={},
        val_evaluator=Evaluator(SegmentationMetric(table, s4p.TASK)),
        custom_hooks=[SummaryHook(), PicturesHook({s4p.TASK: table}, count=16)],
        **log_options(cfg.schedule.log_interval),
        visualizer=build_visualizer(work_dir, f"evaluate_{args.backbone}"),
    )
    runner.val()
    stop_workers(loader)
    logger.info("scores and pictures are in %s", work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
