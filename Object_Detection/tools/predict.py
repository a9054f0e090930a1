"""Detects objects in images: drawings, DOTA's text and GeoJSON for every task.

    python tools/predict.py vit_b_moe_det.pth images/ --out detections                         all tasks
    python tools/predict.py CKPT 'scenes/**/*.tif' harbour.png --out detections --tasks dota --score-thr 0.5
    python tools/predict.py CKPT huge.tif --out detections --formats geojson --window 1024 --overlap 200
    torchrun --nproc_per_node 8 tools/predict.py CKPT images/ --out detections     the images shared by 8 GPUs

An image whose sides fit the window goes through the network at once, resized as in training; a larger one in
overlapping windows, which are merged. A TIFF of any size is read by rows of windows. Detections whose centre
lies where the image has no data are dropped. Writes with the folders of the input
    <out>/<task>/drawings/<name>.jpg         outlines; images of over 4096 pixels are reduced
    <out>/<task>/dota/<name>.txt             x1 y1 x2 y2 x3 y3 x4 y4 class 0 score
    <out>/<task>/geojson/<name>.geojson      longitude and latitude for a GeoTIFF, else pixels
and <out>/<task>/prediction.yaml, which says how they were made. Existing results are overwritten;
--resume keeps those made with the same settings. Images that cannot be read are named at the end; the exit
code is then 1.
"""

import argparse
import logging
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from s5.command import run_command
from s5.compat import mmcv_ext
from s5.compat.precision import PRECISIONS, resolve_precision
from s5.detection import trained
from s5.detection.predict import Cutting, predict_files
from s5.detection.results import FORMATS, DetResults
from s5.detection.trained import DetRecipe
from s5.prediction.plan import Request, Settings, Work, carry_out, identify, report, start
from s5.training.command import add_common_options
from s5.training.config import ConfigError

logger = logging.getLogger("s5.predict")

OVERLAP = 200 / 1024  # of the window, as DOTA is cut
SMALLEST = 32  # pixels of a window


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=Path, help="whole detector, with or without .pth")
    parser.add_argument("input", nargs="+", help="folders (with subfolders), files, or patterns in quotes")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tasks", "--task", nargs="+", default=["all"], metavar="NAME", help="default: all")
    parser.add_argument("--score-thr", type=float, default=0.3, metavar="SCORE", help="default: 0.3")
    parser.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help="side of windows, to which smaller images are padded (default: as in training, enlarging them)",
    )
    parser.add_argument("--overlap", type=int, metavar="PIXELS", help="of windows; default: 200 of 1024")
    names = ", ".join(FORMATS)
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], metavar="NAME", help=f"of {names}")
    parser.add_argument("--resume", action="store_true", help="leave images alone whose results exist")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--config", help="for checkpoints that do not say what network they hold")
    add_common_options(parser)
    args = parser.parse_args(argv)
    for name in ("tasks", "formats"):
        given = [part for value in getattr(args, name) for part in value.split(",") if part]
        if not given:
            parser.error(f"--{name} {' '.join(getattr(args, name))}: names nothing")
        setattr(args, name, list(dict.fromkeys(given)))
    if unknown := [name for name in args.formats if name not in FORMATS]:
        parser.error(f"--formats {unknown[0]}: must be of {names}")
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr {args.score_thr}: from 0 to 1")
    return args


def find_cutting(args: argparse.Namespace, recipe: DetRecipe) -> Cutting:
    """The windows of the command line.

    Raises:
        ConfigError: they would be too small, or leave gaps.
    """
    window = recipe.img_size if args.window is None else args.window
    if window < SMALLEST:
        raise ConfigError(f"--window {window}: at least {SMALLEST} pixels")
    overlap = round(OVERLAP * window) if args.overlap is None else args.overlap
    if not 0 <= overlap < window:
        raise ConfigError(f"--overlap {overlap}: from 0 to less than the window of {window} pixels")
    return Cutting(recipe.img_size, window, args.window is not None, overlap, recipe.settings.nms)


def settings_of(
    args: argparse.Namespace, recipe: DetRecipe, how: Cutting, dtype: torch.dtype | None
) -> Settings:
    """What the results of each task depend on."""
    chosen = asdict(recipe.settings)
    chosen["enlarge"] = list(recipe.settings.enlarge)  # YAML has no tuples
    return {
        task: {
            **identify(args.checkpoint),
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            **chosen,
            "size": how.size,
            "window": how.window,
            "pad": how.pad,
            "overlap": how.overlap,
            "classes": list(names),
        }
        for task, names in recipe.classes.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Predict; returns 0, or 1 when images could not be read."""
    args = parse_args(argv)
    place = start(args.device)
    mmcv_ext.require_device(place.device.type)
    logger.info("mmcv operators: %s", mmcv_ext.in_use())
    recipe = trained.find_recipe(args.checkpoint, args.config, args.cfg_options)
    if not recipe.configured and (args.config or args.cfg_options):
        raise ConfigError(
            f"{args.checkpoint} says itself what it holds, no configuration is read: leave --config and "
            f"--cfg-options out"
        )
    recipe = recipe.only([] if args.tasks == ["all"] else args.tasks)
    recipe = replace(recipe, settings=replace(recipe.settings, score_thr=args.score_thr))
    how = find_cutting(args, recipe)
    dtype = resolve_precision(args.precision, place.device)
    results = DetResults(args.out, recipe.classes, tuple(args.formats))

    def build() -> Work:
        model = trained.build_trained(recipe, args.checkpoint, place.device, dtype)
        return partial(predict_files, model, results=results, how=how)

    settings = settings_of(args, recipe, how, dtype)
    return report(carry_out(Request(args.input, results, settings, args.resume), build, place))


if __name__ == "__main__":
    sys.exit(run_command(main))
