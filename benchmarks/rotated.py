"""Seconds of the operators on rotated boxes: the plain way, S5, and torchvision on upright boxes."""

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor

from benchmarks.plain_rotated import plain_iou, plain_nms, plain_roi_align
from benchmarks.timing import device_name, interleaved, markdown_table
from s5.ops.boxes import columns_of, enclosing_boxes
from s5.ops.rotated_iou import rotated_iou
from s5.ops.rotated_nms import rotated_nms
from s5.ops.rotated_roi_align import Sampling, rotated_roi_align

IMAGE, SIZES = 1024, (8, 120)  # pixels
CLASSES, THRESHOLD = 18, 0.1
CHANNELS, MAP, BINS, RATIO = 256, 256, 7, 2
HEADER = ("operator", "plain, s", "S5, s", "ratio", "torchvision, upright, s")

Tasks = dict[str, Callable[[], object]]


def run(args: argparse.Namespace) -> str:
    """Measures all operators and returns the table."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cpu" and args.threads:
        torch.set_num_threads(args.threads)
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter  # other processes do not count
    operators = {
        f"IoU of {args.boxes} x {args.boxes} boxes": iou_tasks(args.boxes, device),
        f"NMS of {args.detections} boxes in {CLASSES} classes": nms_tasks(args.detections, device),
        f"RoIAlign of {args.rois} regions, forward and backward": roi_align_tasks(args.rois, device),
    }
    rows: list[Sequence[object]] = []
    for name, tasks in operators.items():
        waiting = {key: _waiting(task, device) for key, task in tasks.items()}
        seconds = interleaved(waiting, args.repeats, clock)
        plain, ours, upright = seconds.values()
        rows.append((name, plain, ours, plain / ours, upright))
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    title = (
        f"Rotated boxes of {SIZES[0]} to {SIZES[1]} px on {IMAGE}²; {BINS}x{BINS} bins of {RATIO}x{RATIO} "
        f"samples from {CHANNELS} channels of {MAP}². Device: {device_name(args.device)}{threads}."
    )
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def iou_tasks(count: int, device: torch.device) -> Tasks:
    """Each box with each."""
    boxes1, boxes2 = _boxes(count, device), _boxes(count, device)
    upright1, upright2 = _upright(boxes1), _upright(boxes2)
    return {
        "plain": lambda: plain_iou(boxes1, boxes2),
        "ours": lambda: rotated_iou(boxes1, boxes2),
        "upright": lambda: torchvision.ops.box_iou(upright1, upright2),
    }


def nms_tasks(count: int, device: torch.device) -> Tasks:
    """Detections of an image of many objects."""
    boxes, scores = _boxes(count, device), torch.rand(count, device=device)
    labels = torch.randint(0, CLASSES, (count,), device=device)
    upright = _upright(boxes)
    return {
        "plain": lambda: plain_nms(boxes, scores, THRESHOLD, labels),
        "ours": lambda: rotated_nms(boxes, scores, THRESHOLD, labels),
        "upright": lambda: torchvision.ops.batched_nms(upright, scores, labels, THRESHOLD),
    }


def roi_align_tasks(count: int, device: torch.device) -> Tasks:
    """The regions of one image, with the gradient for the features."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--boxes", type=int, default=2000, help="boxes on each side of the IoU table")
    parser.add_argument("--detections", type=int, default=10000, help="boxes for NMS")
    parser.add_argument("--rois", type=int, default=1024, help="regions for RoIAlign")
