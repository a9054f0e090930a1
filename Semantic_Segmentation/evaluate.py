"""Evaluate a trained model on the validation images of its tasks.

    python evaluate.py work_dirs/mdf_vit_b_moe/vit_b_moe_mdf_best.pth
    python evaluate.py CKPT --tasks loveda potsdam --tta flip --scales 0.75 1.0 1.25
    python evaluate.py published.pth --backbone vit_b_moe --cfg-options data_root=/data/seg
    torchrun --nproc_per_node 8 evaluate.py CKPT ...                    same scores, 8 GPUs

The data is configured by --config, by default config.yaml beside the checkpoint or else configs/rsseg.yaml.
Writes to the work folder: scores.json, <task>_classes.csv, <task>_confusion.{csv,png}, pictures/, train.log.
"""

import argparse
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path

from s5 import launch
from s5.command import run_command
from s5.compat.precision import resolve_precision
from s5.segmentation import mdf, trained
from s5.segmentation.evaluation import check_classes, summary, write_reports
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.tta import add_inference_options, changed_inference, make_tta
from s5.training.command import command_parser
from s5.training.config import load_config
from s5.training.experiment import check_codings, run_validation
from s5.training.hooks import PicturesHook

HERE = Path(__file__).resolve().parent

logger = logging.getLogger("s5.evaluate")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/rsseg.yaml", experts=True)
    parser.set_defaults(config=None)  # read from the checkpoint
    parser.add_argument("checkpoint", type=Path, help="full model, with or without .pth")
    parser.add_argument("--tasks", "--task", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: evaluation/ beside the file)")
    parser.add_argument(
        "--pictures", type=int, default=16, metavar="N", help="images per contact sheet of a task"
    )
    add_inference_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    args = parse_args(argv)
    path = trained.find_config(args.config, args.checkpoint, HERE / "configs/rsseg.yaml")
    cfg = mdf.select_tasks(load_config(MDFConfig, path, args.cfg_options), args.tasks)
    process = launch.start(args.device)
    spec = trained.find_spec(args.checkpoint, args.backbone, path, args.cfg_options)
    work_dir = launch.make_work_dir(args.work_dir or args.checkpoint.parent / "evaluation", process)
    launch.setup_logging(work_dir, process)
    logger.info("configuration: %s", path)

    tables = mdf.build_tables(cfg)
    check_classes(spec.tables, tables)
    validated = {task: section.evaluation.inference() for task, section in cfg.tasks.items()}
    inference = changed_inference(validated, args.mode, args.crop, args.stride)
    tta = make_tta(args.tta == "flip", args.scales)
    spec = replace(spec.only(list(tables)), inference=inference, tta=tta)
    model = spec.build(args.checkpoint, process.device, resolve_precision(cfg.precision, process.device))

    experiment = mdf.MDFExperiment(cfg, process, work_dir)
    metrics = experiment.build_metrics()
    check_codings([(mdf.validation_split(cfg, task), table) for task, table in tables.items()], process)
    loader = experiment.build_val_loader()
    run_validation(
        model,
        loader,
        metrics,
        launch=process,
        work_dir=work_dir,
        name=f"evaluate_{spec.backbone}",
        hooks=[PicturesHook(tables, count=args.pictures)],
        log_interval=cfg.schedule.log_interval,
    )
    if process.is_main:
        common = {"checkpoint": str(args.checkpoint), "tta": None if tta is None else asdict(tta)}
        write_reports(work_dir, metrics, {t: {**common, **asdict(inf)} for t, inf in spec.inference.items()})
        logger.info("\n%s", summary(metrics))
        logger.info("scores, confusion matrices and pictures are in %s", work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
