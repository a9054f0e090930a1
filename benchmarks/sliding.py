"""Speed (megapixels/s) and peak memory of sliding-window prediction, against a plain implementation.

Plain: normalises the full image in float32, predicts one window at a time with unfused attention, and keeps
sums of K x H x W float32 for the full image. Both compute the same windows. Every measurement runs in
a separate process, in turn, after a warm-up on one window.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from benchmarks import steps
from benchmarks.plain_step import use_plain_attention
from benchmarks.steps import PAIRS, VARIANTS
from benchmarks.timing import device_name, markdown_table
from s5.backbones import IMAGENET
from s5.compat.memory import peak_memory
from s5.compat.precision import has_bf16
from s5.ops.photometric import normalize
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.segmentation.windows import Inference, window_starts

TASK, NUM_CLASSES = "loveda", 7
HEADER = ("prediction", "seconds", "megapixels/s", "peak memory, GB")

Predict = Callable[[Tensor], Tensor]


def plain_prediction(segmentor: Segmentor, args: argparse.Namespace, dtype: torch.dtype | None) -> Predict:
    """Predict uint8 images (3, H, W) with the plain implementation."""
    use_plain_attention(segmentor)
    segmentor.to(args.device).eval()

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        pixels = normalize(image[None].to(args.device), *IMAGENET)
        height, width = image.shape[-2:]
        sums = torch.zeros(1, NUM_CLASSES, height, width, device=args.device)
        counts = torch.zeros(1, 1, height, width, device=args.device)
        for top in window_starts(height, args.window, args.stride):
            for left in window_starts(width, args.window, args.stride):
                window = (..., slice(top, top + args.window), slice(left, left + args.window))
                with (
                    nullcontext() if dtype is None else torch.autocast(torch.device(args.device).type, dtype)
                ):
                    sums[window] += segmentor(pixels[window])
                counts[window] += 1
        return (sums / counts).softmax(1).argmax(1)[0].cpu()

    return predict


def s5_prediction(segmentor: Segmentor, args: argparse.Namespace, dtype: torch.dtype | None) -> Predict:
    """Predict uint8 images (3, H, W) with S5."""
    how = Inference("slide_window", args.window, args.stride)
    model = SegmentationModel(segmentor, {TASK: how}, dtype).to(args.device)
    model.to(memory_format=torch.channels_last).eval()
    return lambda image: model.predict(image, TASK).cpu()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measure one variant in this process: seconds of a prediction and peak memory in bytes."""
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    plain, dtype = VARIANTS[args.variant]
    image = torch.randint(256, (3, args.image, args.image), dtype=torch.uint8)
    before = peak_memory(torch.device(args.device))
    segmentor = build_segmentor(args.backbone, {TASK: NUM_CLASSES}, args.window)
    predict = (plain_prediction if plain else s5_prediction)(segmentor, args, dtype)
    predict(image[:, : args.window, : args.window])
    start = time.perf_counter()
    predict(image)
    return {"seconds": time.perf_counter() - start, "bytes": peak_memory(torch.device(args.device)) - before}


def run(args: argparse.Namespace) -> str:
    """Measure all variants in turn; returns the table with the ratios."""
    with_bf16 = args.bf16 or has_bf16(torch.device(args.device))
    names = [name for name, (_, dtype) in VARIANTS.items() if with_bf16 or dtype is None]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            results[name].append(_measure_apart(name, args))
    seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()}
    memory = {name: statistics.median(r["bytes"] for r in runs) / 1e9 for name, runs in results.items()}
    rows = [(name, seconds[name], args.image**2 / 1e6 / seconds[name], memory[name]) for name in names]
    threads = f", {args.threads} thread(s)" if args.threads and args.device == "cpu" else ""
    title = (
        f"Prediction of {args.image}x{args.image} pixels, {args.backbone} + UperNet, {NUM_CLASSES} classes, "
        f"windows of {args.window}² every {args.stride} pixels. Device: {device_name(args.device)}{threads}."
    )
    ratios = [
        f"- {ours} against {plain}: {seconds[plain] / seconds[ours]:.2f} times as fast, "
        f"{memory[ours] / memory[plain]:.2f} of the peak memory"
        for ours, plain in PAIRS
        if {ours, plain} <= set(names)
    ]
    return "\n\n".join([title, markdown_table(HEADER, rows), "\n".join(ratios)])


def _measure_apart(variant: str, args: argparse.Namespace) -> dict[str, float]:
    options = ("backbone", "image", "window", "stride", "threads", "device")
    command = [sys.executable, "-m", "benchmarks.sliding", "--variant", variant]
    for option in options:
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark alone; it also takes backbone, threads and bf16 of the steps."""
    parser.add_argument("--image", type=int, default=6000, help="side of the image to predict, pixels")
    parser.add_argument("--window", type=int, default=512, help="side of a window, pixels")
    parser.add_argument("--stride", type=int, default=384, help="step between windows")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; with `--variant` measures one of its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sliding", description=__doc__, allow_abbrev=False
    )
    steps.add_arguments(parser)
    add_arguments(parser)
    parser.add_argument(
        "--repeats", type=int, default=1, help="processes per variant; the median is reported"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    print(json.dumps(measure(args)) if args.variant else run(args))


if __name__ == "__main__":
    main()
