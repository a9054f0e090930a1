"""Predict images: index masks, colour masks and overlays of every task.

    python predict.py vit_b_moe_mdf_best.pth images/ --out predictions                      all tasks
    python predict.py CKPT 'scenes/**/*.tif' --out predictions --tasks loveda --tta flip
    python predict.py published.pth photo.jpg --out predictions --backbone vit_b_moe --tasks potsdam
    torchrun --nproc_per_node 8 predict.py CKPT images/ --out predictions       images shared among 8 GPUs

Writes <out>/<task>/{index,color,overlay}/<name>.png, keeping the subfolders of the input. Index masks contain
the raw values of the task's label table, like its training masks. TIFF input gives TIFF output with the same
georeferencing (transform, ground control points or RPC). Where an image has no data, index masks have an
ignored value, and colour masks and overlays are transparent. <out>/<task>/prediction.yaml records the
settings and the meaning of the values. Existing results are overwritten; --resume keeps those made with the
same settings. Images that cannot be read are listed at the end, and the exit code is then 1.
"""

import argparse
import sys
from pathlib import Path

from s5.command import run_command
from s5.prediction.command import add_prediction_options, chosen, predict_to_files, report, start
from s5.segmentation.predict import make_predictor, prediction_parser
from s5.segmentation.results import ALPHA, FORMATS

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = prediction_parser(__doc__, HERE / "configs/rsseg.yaml")
    add_prediction_options(parser, [*FORMATS])
    parser.add_argument("--overlay-alpha", type=float, default=ALPHA, help="weight of the colours, 0 to 1")
    args = parser.parse_args(argv)
    if not 0 <= args.overlay_alpha <= 1:
        parser.error(f"--overlay-alpha {args.overlay_alpha}: must be from 0 to 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Predict and return the exit code: 0, or 1 if images could not be read."""
    args = parse_args(argv)
    launch = start(args.device)
    predictor = make_predictor(args, args.checkpoint, chosen(args.tasks), launch, args.overlay_alpha)
    formats = chosen(args.formats)
    return report(predict_to_files(predictor, args.input, args.out, formats, launch, resume=args.resume))


if __name__ == "__main__":
    sys.exit(run_command(main))
