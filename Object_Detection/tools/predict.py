"""Detect objects in images: drawings, DOTA text and GeoJSON of every task.

    python tools/predict.py vit_b_moe_det.pth images/ --out detections                         all tasks
    python tools/predict.py CKPT 'scenes/**/*.tif' harbour.png --out detections --tasks dota --score-thr 0.5
    python tools/predict.py CKPT huge.tif --out detections --formats geojson --window 1024 --overlap 200
    torchrun --nproc_per_node 8 tools/predict.py CKPT images/ --out detections     images shared among 8 GPUs

An image that fits into a window is predicted in one pass, resized as in training; larger images are predicted
in overlapping windows, whose detections are merged. TIFFs of any size are read by rows of windows. Detections
whose centre has no data are dropped. Writes, keeping the subfolders of the input,
    <out>/<task>/drawings/<name>.jpg         outlines; images with a side over 4096 pixels are reduced
    <out>/<task>/dota/<name>.txt             x1 y1 x2 y2 x3 y3 x4 y4 class 0 score
    <out>/<task>/geojson/<name>.geojson      longitude and latitude for a GeoTIFF, otherwise pixels
and <out>/<task>/prediction.yaml, which records the settings. Existing results are overwritten; --resume keeps
those made with the same settings. Images that cannot be read are listed at the end, and the exit code is then
1.
"""

import argparse
import logging
import sys

from s5.command import run_command
from s5.compat import mmcv_ext
from s5.detection import trained
from s5.detection.predict import SCORE_THR, DetectionPredictor
from s5.detection.results import FORMATS
from s5.prediction.command import add_prediction_options, chosen, predict_to_files, report, start
from s5.prediction.spec import refuse_configuration
from s5.training.command import add_common_options

logger = logging.getLogger("s5.predict")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_prediction_options(parser, [*FORMATS])
    parser.add_argument(
        "--score-thr",
        type=float,
        default=SCORE_THR,
        metavar="SCORE",
        help=f"minimum score (default: {SCORE_THR})",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help="side of windows, to which smaller images are padded (default: training size, enlarging them)",
    )
    parser.add_argument("--overlap", type=int, metavar="PIXELS", help="default: 200/1024 of a window")
    parser.add_argument("--config", help="configuration for checkpoints without metadata")
    add_common_options(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr {args.score_thr}: must be from 0 to 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Predict and return the exit code: 0, or 1 if images could not be read."""
    args = parse_args(argv)
    launch = start(args.device)
    mmcv_ext.require_device(launch.device.type)
    logger.info("mmcv operators: %s", mmcv_ext.in_use())
    spec = trained.find_spec(args.checkpoint, args.config, args.cfg_options)
    refuse_configuration(spec, args.checkpoint, args.config, args.cfg_options)
    predictor = DetectionPredictor(
        spec.only(chosen(args.tasks)),
        args.checkpoint,
        launch.device,
        args.precision,
        score_thr=args.score_thr,
        window=args.window,
        overlap=args.overlap,
    )
    formats = chosen(args.formats)
    return report(predict_to_files(predictor, args.input, args.out, formats, launch, resume=args.resume))


if __name__ == "__main__":
    sys.exit(run_command(main))
