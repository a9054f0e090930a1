"""Export a trained model for use without this package.

    python -m s5.export model.pth roads.onnx --task roads          ONNX, images of any size
    python -m s5.export model.pth roads.onnx --task roads --qgis   for Deepness in QGIS: a fixed size
    python -m s5.export model.pth roads.pt2 --task roads           torch.export
    python -m s5.export det.pth ships.onnx --task ships            a detector: rotated boxes before NMS
    python -m s5.export published.pth out.onnx --backbone vit_b_moe --classes loveda=loveda

Beside the file, NAME.stac.json describes it as a STAC item with the Machine Learning Model extension.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s5.api import load
from s5.command import run_command
from s5.errors import ConfigError
from s5.export.plan import ExportOptions, described
from s5.export.run import export_model


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m s5.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="weights of a segmentor or a detector")
    parser.add_argument("out", type=Path, help="file to write: .onnx or .pt2")
    parser.add_argument("--task", help="task to export, or all (segmentation: an output each)")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="fixed side of the images (default: any size)"
    )
    parser.add_argument(
        "--qgis", action="store_true", help="fixed size as Deepness needs it (default: the windows)"
    )
    parser.add_argument(
        "--resolution", type=float, metavar="CM", help="size of a pixel on the ground, for Deepness"
    )
    parser.add_argument("--backbone", metavar="NAME", help="only for a file without metadata")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="TASK=DATASET",
        help="only for a file without metadata: the known dataset, or the number of classes, of every task",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)

    def command() -> int:
        options = ExportOptions(args.task, args.size, args.qgis, args.resolution, args.overwrite)
        model = load(args.checkpoint, "cpu", "fp32", backbone=args.backbone, tasks=_tasks(args.classes))
        plan, files = export_model(model, args.out, options)
        for file in files:
            print(f"wrote {file}")
        print(described(plan))
        if not plan.is_detector and plan.size is None and args.out.suffix == ".onnx":
            print("Deepness in QGIS needs a fixed size: add --qgis for it")
        if args.resolution is None and args.out.suffix == ".onnx":
            print("without --resolution, set the size of a pixel in QGIS yourself")
        return 0

    return run_command(command)


def _tasks(given: Sequence[str]) -> dict[str, int | str] | None:
    """Read `TASK=DATASET` and `TASK=NUMBER`.

    Raises:
        ConfigError: An entry has another form.
    """
    for entry in given:
        task, sign, classes = entry.partition("=")
        if not (task and sign and classes):
            raise ConfigError(f"--classes {entry}: write TASK=DATASET or TASK=NUMBER, such as roads=2")
    pairs = (entry.partition("=")[::2] for entry in given)
    return {task: int(classes) if classes.isdigit() else classes for task, classes in pairs} or None


if __name__ == "__main__":
    sys.exit(main())
