"""Time and peak memory of the operators on rotated boxes: plain, S5, and torchvision on upright boxes.

The three take turns in one process; memory is measured in a separate process for each.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor

from benchmarks.plain_rotated import plain_iou, plain_nms, plain_roi_align
from benchmarks.timing import device_name, interleaved, markdown_table
from s5.compat.memory import peak_memory
from s5.ops.boxes import columns_of, enclosing_boxes
from s5.ops.rotated_iou import rotated_iou
from s5.ops.rotated_nms import rotated_nms
from s5.ops.rotated_roi_align import Sampling, rotated_roi_align

IMAGE, SIZES = 1024, (8, 120)  # pixels
CLASSES, THRESHOLD = 18, 0.1
CHANNELS, MAP, BINS, RATIO = 256, 256, 7, 2
VARIANTS = {"plain": "plain", "ours": "S5", "upright": "torchvision, upright"}
HEADER = ("operator", "way", "seconds", "ratio", "peak memory, GB")

Tasks = dict[str, Callable[[], object]]  # by name in VARIANTS


def run(args: argparse.Namespace) -> str:
    """Measure all operators; returns the table."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cpu" and args.threads:
        torch.set_num_threads(args.threads)
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter  # CPU time ignores other processes
    names = {
        "iou": f"IoU of {args.boxes} x {args.boxes} boxes",
        "nms": f"NMS of {args.detections} boxes in {CLASSES} classes",
        "roi_align": f"RoIAlign of {args.rois} regions, forward and backward",
    }
    rows: list[Sequence[object]] = []
    for operator, name in names.items():
        tasks = {key: _waiting(task, device) for key, task in OPERATORS[operator](args, device).items()}
        seconds = interleaved(tasks, args.repeats, clock)
        for key, way in VARIANTS.items():
            ratio = seconds["plain"] / seconds[key]
            rows.append((name, way, seconds[key], ratio, _memory_apart(operator, key, args) / 1e9))
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    title = (
        f"Rotated boxes of {SIZES[0]} to {SIZES[1]} px on {IMAGE}²; {BINS}x{BINS} bins of {RATIO}x{RATIO} "
        f"samples from {CHANNELS} channels of {MAP}². Device: {device_name(args.device)}{threads}."
    )
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def iou_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """All pairs of boxes."""
    boxes1, boxes2 = _boxes(args.boxes, device), _boxes(args.boxes, device)
    upright1, upright2 = _upright(boxes1), _upright(boxes2)
    return {
        "plain": lambda: plain_iou(boxes1, boxes2),
        "ours": lambda: rotated_iou(boxes1, boxes2),
        "upright": lambda: torchvision.ops.box_iou(upright1, upright2),
    }


def nms_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """Detections in an image with many objects."""
    count = args.detections
    boxes, scores = _boxes(count, device), torch.rand(count, device=device)
    labels = torch.randint(0, CLASSES, (count,), device=device)
    upright = _upright(boxes)
    return {
        "plain": lambda: plain_nms(boxes, scores, THRESHOLD, labels),
        "ours": lambda: rotated_nms(boxes, scores, THRESHOLD, labels),
        "upright": lambda: torchvision.ops.batched_nms(upright, scores, labels, THRESHOLD),
    }


def roi_align_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """The regions of an image, with the gradient of the features."""
    count = args.rois
    features = torch.randn(1, CHANNELS, MAP, MAP, device=device, requires_grad=True)
    scale, boxes = MAP / IMAGE, _boxes(count, device)
    image = torch.zeros(count, 1, device=device)
    rois, upright = torch.cat((image, boxes), dim=1), torch.cat((image, _upright(boxes)), dim=1)
    sampling = Sampling((BINS, BINS), scale, RATIO)
    grad = torch.randn(count, CHANNELS, BINS, BINS, device=device)

    def both_ways(pool: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(pool(), features, grad)

    return {
        "plain": both_ways(lambda: plain_roi_align(features, rois, BINS, scale, RATIO)),
        "ours": both_ways(lambda: rotated_roi_align(features, rois, sampling)),
        "upright": both_ways(
            lambda: torchvision.ops.roi_align(features, upright, BINS, scale, RATIO, aligned=True)
        ),
    }


OPERATORS = {"iou": iou_tasks, "nms": nms_tasks, "roi_align": roi_align_tasks}


def _boxes(count: int, device: torch.device) -> Tensor:
    draws = torch.rand(count, 5)
    low = torch.tensor([0, 0, SIZES[0], SIZES[0], -math.pi / 2])
    high = torch.tensor([IMAGE, IMAGE, SIZES[1], SIZES[1], math.pi / 2])
    return (low + draws * (high - low)).to(device)


def _upright(boxes: Tensor) -> Tensor:
    return enclosing_boxes(columns_of(boxes)).to(boxes.dtype)


def _waiting(task: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def waiting() -> None:
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return waiting


def _memory_apart(operator: str, variant: str, args: argparse.Namespace) -> int:
    """Peak memory in bytes beyond that of the inputs, of one call in a separate process."""
    command = [sys.executable, "-m", "benchmarks.rotated", "--measure", operator, variant]
    for option in ("boxes", "detections", "rois", "threads", "device"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _measure(args: argparse.Namespace) -> int:
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    operator, variant = args.measure
    task = OPERATORS[operator](args, torch.device(args.device))[variant]
    before = peak_memory(torch.device(args.device))
    task()
    return peak_memory(torch.device(args.device)) - before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--boxes", type=int, default=2000, help="boxes on each side of the IoU table")
    parser.add_argument("--detections", type=int, default=10000, help="boxes for NMS")
    parser.add_argument("--rois", type=int, default=1024, help="regions for RoIAlign")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; with `--measure` the memory of one of its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rotated", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = PyTorch's choice")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    print(_measure(args) if args.measure else run(args))


if __name__ == "__main__":
    main()
