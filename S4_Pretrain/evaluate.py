"""Evaluate a checkpoint of S4P (or a published one) on a labeled split.

    python evaluate.py work_dirs/s4p_vit_b/vit_b_s4p_upernet.pth --cfg-options data_root=/data/S5
    torchrun --nproc_per_node 8 evaluate.py ...                                   same scores, 8 GPUs

--config configures the data, by default config.yaml beside the checkpoint or else configs/pretrain.yaml.
Prints the scores of every class and writes them to the work folder, with a confusion matrix and pictures.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from s5 import launch
from s5.command import run_command
from s5.compat.precision import resolve_precision
from s5.data.labels import get_table
from s5.data.loaders import resolve_split
from s5.errors import ConfigError
from s5.segmentation import s4p, trained
from s5.segmentation.evaluation import check_classes, write_reports
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.trained import SegmentationSpec
from s5.training.command import command_parser
from s5.training.config import config_beside, load_config
from s5.training.experiment import check_codings, run_validation
from s5.training.hooks import PicturesHook, SummaryHook

HERE = Path(__file__).resolve().parent

logger = logging.getLogger("s5.evaluate")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__, HERE / "configs/pretrain.yaml")
    parser.set_defaults(config=None)  # beside the checkpoint
    parser.add_argument("checkpoint", type=Path, help="full model: <backbone>_s4p_upernet.pth")
    parser.add_argument(
        "--work-dir", type=Path, help="output folder (default: evaluation/ beside the checkpoint)"
    )
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="images per contact sheet")
    return parser.parse_args(argv)


def find_config(given: str | None, checkpoint: Path) -> Path:
    """Return the given configuration, or that of the checkpoint's S4P run, or else the shipped one."""
    beside = config_beside(checkpoint)
    if given is None and beside is not None and "tasks" not in yaml.safe_load(beside.read_text("utf-8")):
        return beside
    return Path(given or HERE / "configs/pretrain.yaml")


def find_spec(checkpoint: Path, backbone: str | None, cfg: S4PConfig) -> SegmentationSpec:
    """Build the spec from metadata or the configuration, with the configured inference settings.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: The checkpoint has several tasks, or another backbone or other classes than given.
    """
    spec = trained.spec_of_checkpoint(checkpoint, backbone)
    if spec is None:
        return SegmentationSpec.from_s4p_config(cfg, backbone or cfg.backbone, s4p.TASK)
    if len(spec.tables) > 1:
        raise ConfigError(
            f"{checkpoint} has the tasks {', '.join(spec.tables)}; evaluate it with "
            f"Semantic_Segmentation/evaluate.py"
        )
    (trained_table,) = spec.tables.values()
    tables = {s4p.TASK: trained_table}
    check_classes(tables, {s4p.TASK: get_table(cfg.data.labels)})
    return replace(spec, tables=tables, inference={s4p.TASK: cfg.data.val.inference()})


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    args = parse_args(argv)
    path = find_config(args.config, args.checkpoint)
    cfg = load_config(S4PConfig, path, args.cfg_options)
    process = launch.start(args.device)
    spec = find_spec(args.checkpoint, args.backbone, cfg)
    work_dir = launch.make_work_dir(args.work_dir or args.checkpoint.parent / "evaluation", process)
    launch.setup_logging(work_dir, process)

    logger.info("configuration: %s", path)
    experiment = s4p.S4PExperiment(cfg, process, work_dir)
    table = experiment.table
    model = spec.build(args.checkpoint, process.device, resolve_precision(cfg.precision, process.device))
    check_codings([(resolve_split(cfg.data_root, cfg.data.val.split), table)], process)
    loader = experiment.build_val_loader()
    metrics = experiment.build_metrics()
    hooks = [SummaryHook(), PicturesHook({s4p.TASK: table}, count=args.pictures)]
    run_validation(
        model,
        loader,
        metrics,
        launch=process,
        work_dir=work_dir,
        name=f"evaluate_{spec.backbone}",
        hooks=hooks,
        log_interval=cfg.schedule.log_interval,
    )
    if process.is_main:
        write_reports(work_dir, metrics, {s4p.TASK: {"checkpoint": str(args.checkpoint)}})
    logger.info("scores and pictures are in %s", work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
