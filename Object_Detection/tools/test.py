"""Evaluate a trained detector on the validation images of its tasks, and write submissions to DOTA's server.

    python tools/test.py CONFIG work_dirs/NAME/vit_b_moe_det.pth
    python tools/test.py CONFIG CKPT --tasks dior --out detections --cfg-options data_root=/data/det
    python tools/test.py CONFIG CKPT --split test --submit dota=dota.zip         test images, without labels
    torchrun --nproc_per_node 8 tools/test.py CONFIG CKPT ...                    same results, 8 GPUs

CKPT is a weight file (<backbone>_det*.pth) or a resumable checkpoint (iter_<n>.pth), with or without .pth.
Writes to the work folder: scores.json, <task>_classes.csv, pictures/, train.log; to --out, the detections as
<task>/<image>.txt, merged to full images if the images are configured as windows.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from s5 import launch
from s5.checkpoints.reading import read_checkpoint
from s5.command import run_command
from s5.compat import mmcv_ext
from s5.compat.precision import resolve_precision
from s5.detection import evaluation, submission, trained
from s5.detection.evaluation import DetectionCollector
from s5.detection.experiment import BoxPicturesHook, DetectionExperiment
from s5.detection.metric import build_metrics, images_of, is_merged
from s5.detection.trained import DetectionSpec
from s5.errors import ConfigError
from s5.launch import Launch
from s5.training.command import add_common_options
from s5.training.experiment import run_validation

logger = logging.getLogger("s5.test")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="Python configuration, or config.yaml of a run")
    parser.add_argument("checkpoint", type=Path, help="full detector, with or without .pth")
    add_common_options(parser, "--options")
    parser.add_argument("--tasks", "--task", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--split", choices=evaluation.PARTS, default="val", help="default: val")
    parser.add_argument("--work-dir", type=Path, help="output folder (default: evaluation/ beside the file)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the detections as text")
    parser.add_argument(
        "--submit", nargs="+", default=[], metavar="TASK=ZIP", help="write a submission to DOTA's server"
    )
    parser.add_argument(
        "--pictures", type=int, default=8, metavar="N", help="images per contact sheet of a task"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch"], help="ignored: detected automatically")
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.tasks = [name for part in args.tasks for name in part.split(",") if name]
    return args


def find_submissions(given: Sequence[str], tasks: Sequence[str]) -> dict[str, Path]:
    """Parse the submission files by task.

    Raises:
        ConfigError: An item is not TASK=ZIP, a task is not evaluated, or two tasks have the same file.
    """
    files = {task: Path(path) for task, separator, path in (item.partition("=") for item in given) if path}
    if len(files) < len(given):
        raise ConfigError(f"--submit {' '.join(given)}: expected TASK=FILE.zip, a file for each task")
    for task in files:
        if task not in tasks:
            raise ConfigError(f"--submit {task}: the task is not evaluated; evaluated are {', '.join(tasks)}")
    if len({file.resolve() for file in files.values()}) < len(files):
        raise ConfigError(f"--submit {' '.join(given)}: the same file for two tasks; give each its own")
    return files


def make_folders(
    out: Path | None, submissions: Mapping[str, Path], tasks: Sequence[str], process: Launch
) -> None:
    """Create the folders of detections and submissions, and check that they are writable.

    Raises:
        LaunchError: A folder cannot be written.
    """
    for task in tasks if out else ():
        launch.make_work_dir(out / task, process, "--out")
    for file in submissions.values():
        launch.make_work_dir(file.parent, process, "--submit")


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    args = parse_args(argv)
    full_cfg = trained.load_det_config(args.config, args.cfg_options)
    cfg = evaluation.select_part(full_cfg, args.split, args.tasks)
    submissions = find_submissions(args.submit, list(cfg.tasks))
    process = launch.start(args.device)
    mmcv_ext.require_device(process.device.type)
    spec = DetectionSpec.from_config(cfg)
    trained.require_fit(args.checkpoint, read_checkpoint(args.checkpoint, lazy=True), spec, args.config)
    folder = "evaluation" if args.split == "val" else "evaluation_test"
    work_dir = launch.make_work_dir(args.work_dir or args.checkpoint.parent / folder, process)
    launch.setup_logging(work_dir, process)
    if not args.tasks and (skipped := [task for task in full_cfg.tasks if task not in cfg.tasks]):
        logger.info("skipped tasks without images for --split %s: %s", args.split, ", ".join(skipped))

    classes = dict(spec.classes)
    loader = DetectionExperiment(cfg, process, work_dir).build_val_loader(args.split)
    images = images_of(loader)
    merged = {task: is_merged(cfg, task, args.split) for task in classes}
    names = {task: evaluation.image_names(images[task], merged[task]) for task in submissions}
    for task, out in submissions.items():
        submission.require_submission(out, names[task], classes[task])
    for task in classes if args.out else ():
        evaluation.warn_of_windows(images[task], merged[task])

    metrics = build_metrics(cfg, classes, loader, args.split)
    wanted = list(classes) if args.out else list(submissions)
    collectors = {
        task: DetectionCollector(classes[task], task, merged[task], cfg.model.nms) for task in wanted
    }
    if not metrics and not collectors:
        raise ConfigError("nothing to do: the images have no annotations; give --out or --submit")
    make_folders(args.out, submissions, list(classes), process)
    model = spec.build(args.checkpoint, process.device, resolve_precision(cfg.precision, process.device))
    if process.is_main:
        with evaluation.writing(work_dir):
            evaluation.remove_reports(work_dir, evaluation.PARTS)
    scores = run_validation(
        model,
        loader,
        [*metrics, *collectors.values()],
        launch=process,
        work_dir=work_dir,
        name=f"test_{cfg.backbone}",
        hooks=[BoxPicturesHook(classes, args.pictures, args.split)],
        log_interval=cfg.schedule.log_interval,
    )
    if not process.is_main:
        return 0
    with evaluation.writing(work_dir):
        if metrics:
            settings = {"checkpoint": str(args.checkpoint), "split": args.split}
            evaluation.write_reports(work_dir, metrics, scores, settings)
            logger.info("scores and pictures are in %s", work_dir)
        for task, collector in collectors.items() if args.out else ():
            evaluation.write_texts(args.out, collector)
            logger.info("%d files in %s", len(collector.detections), args.out / task)
        submission.submit(submissions, collectors, names, None if args.out else work_dir / "detections")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
