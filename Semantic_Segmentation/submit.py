"""Write a submission to an evaluation server.

    python submit.py loveda predictions/ --images LoveDA/Test --out loveda.zip
    python submit.py loveda vit_b_moe_mdf_best_loveda.pth --images LoveDA/Test --out loveda.zip --tta flip

The input is an output folder of predict.py (or any folder of index masks named like the images), or a
checkpoint. Predictions of a checkpoint are kept beside the zip, so that a second call continues; those of
another checkpoint or with other settings are overwritten. Names, number, sizes and values of the masks are
checked before the zip is written. The server accepts only the complete set of 1796 test images; with
--partial, an incomplete file is written for inspection.
"""

import argparse
import sys
from pathlib import Path

from s5.command import run_command
from s5.data.datasets import LoveDA
from s5.errors import DataError
from s5.prediction.command import add_precision_option, predict_to_files, start
from s5.segmentation.predict import make_predictor, prediction_parser
from s5.segmentation.submission import VALUES, find_tests, pack_loveda

HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = prediction_parser(__doc__, HERE / "configs/rsseg.yaml")
    add_precision_option(parser)
    parser.add_argument("server", choices=["loveda"])
    parser.add_argument("predictions", type=Path, help="folder of predictions, or a checkpoint")
    parser.add_argument("--images", type=Path, required=True, help="folder of the test images")
    parser.add_argument("--out", type=Path, required=True, metavar="ZIP")
    parser.add_argument("--task", default="loveda", help="task of the checkpoint (default: loveda)")
    parser.add_argument(
        "--values",
        choices=VALUES,
        help="whether classes in the masks count from 1 (raw) or 0 (ids); default: detected",
    )
    parser.add_argument(
        "--partial", action="store_true", help="also write incomplete submissions, which the server rejects"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the submission and return the exit code."""
    args = parse_args(argv)
    find_tests(args.images, args.partial)  # before hours of prediction
    launch = start(args.device)
    folder = args.predictions
    if not folder.is_dir():
        folder = args.out.with_name(f"{args.out.stem}_predictions")
        predictor = make_predictor(args, args.predictions, [args.task], launch)
        given = [str(args.images)]
        problems = predict_to_files(predictor, given, folder, ["index"], launch, resume=True, renew=True)
        if problems:
            raise DataError("\n".join(map(str, problems)))
        folder /= args.task
    if launch.is_main:
        count = pack_loveda(folder, args.images, args.out, args.values, args.partial)
        complete = count == LoveDA.counts["test"]
        rejected = f"the server will reject it, as it needs all {LoveDA.counts['test']} of the test split"
        print(f"{args.out}: {count} masks, {'ready for upload' if complete else rejected}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
