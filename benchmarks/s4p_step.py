"""Time and peak memory of one S4P step, against the plain way of computing the same.

Every measurement runs in a process of its own, in turn, so that memory is clean and load on the machine hits
all of them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.plain_step import PlainStep, use_plain_attention
from benchmarks.timing import device_name, markdown_table
from s5.data.draws import StrongAugmentation, derangement, draw_cutmix_box, draw_photometric
from s5.engine.optim import build_optim_wrapper, param_groups
from s5.models.fixmatch import FixMatch
from s5.models.precision import has_bf16
from s5.models.inference import Inference
from s5.models.segmentor import build_segmentor

NUM_CLASSES = 16
VARIANTS = {
    "plain float32": (True, None),
    "plain, bf16 autocast": (True, torch.bfloat16),
    "S5 float32": (False, None),
    "S5 bf16": (False, torch.bfloat16),
}
PAIRS = (
    ("S5 float32", "plain float32"),
    ("S5 bf16", "plain float32"),
    ("S5 bf16", "plain, bf16 autocast"),
)
HEADER = ("step", "seconds", "images/s", "peak memory, GB")


def plain_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Callable[[], object]:
    """Builds the plain step and its batch."""
    segmentor = build_segmentor(args.backbone, {"task": NUM_CLASSES}, args.size)
    use_plain_attention(segmentor)
    step = PlainStep(segmentor.to(args.device), dtype)
    shape = (args.batch, 3, args.size, args.size)
    names = ("labeled", "weak", "weak_mix", "strong", "strong_mix")
    batch = {name: torch.randn(shape, device=args.device) for name in names}
    batch["labels"] = torch.randint(NUM_CLASSES, (args.batch, args.size, args.size), device=args.device)
    batch["boxes"] = _draws(args)["boxes"][0].to(args.device)
    return lambda: step(batch)


def s5_step(args: argparse.Namespace, dtype: torch.dtype | None) -> Callable[[], object]:
    """Builds S5's step and its batch: uint8 images and draws, augmented within the step."""
    segmentor = build_segmentor(args.backbone, {"task": NUM_CLASSES}, args.size)
    model = FixMatch(segmentor, {"s4p": Inference()}, dtype).to(args.device).train()
    optimizer = build_optim_wrapper(param_groups(segmentor, 5e-5, 0.01), 5e-5, (0.9, 0.999), dtype)
    square = (args.size, args.size)
    batch: dict[str, Any] = {
        "images": torch.randint(256, (2 * args.batch, 3, *square), dtype=torch.uint8, device=args.device),
        "labels": torch.randint(NUM_CLASSES, (args.batch, *square), dtype=torch.uint8, device=args.device),
        "padding": torch.zeros(args.batch, *square, dtype=torch.bool, device=args.device),
        "views": {name: value.to(args.device) for name, value in _draws(args).items()},
    }

    def step() -> None:
        losses = model.loss(**batch)
        optimizer.update_params(losses["loss"])

    return step


def _draws(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    rng, cfg = np.random.default_rng(0), StrongAugmentation()
    draws: dict[str, Any] = {
        "photometric": [draw_photometric(rng, cfg) for _ in range(args.batch)],
        "boxes": [draw_cutmix_box(rng, args.size, cfg) for _ in range(args.batch)],
        "partner": derangement(rng, args.batch),
    }
    return {name: torch.from_numpy(np.stack(value))[None] for name, value in draws.items()}


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measures one variant in this process: median seconds of a step and peak memory in bytes."""
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    # The time of a single thread can be told apart from that of other processes.
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    plain, dtype = VARIANTS[args.variant]
    before = _peak_memory(args.device)
    step = (plain_step if plain else s5_step)(args, dtype)
    seconds = []
    for _ in range(args.steps + 1):
        start = clock()
        step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {"seconds": statistics.median(seconds[1:]), "bytes": _peak_memory(args.device) - before}


def _peak_memory(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(args: argparse.Namespace) -> str:
    """Measures all variants in turn and returns the table with the ratios."""
    with_bf16 = args.bf16 or has_bf16(torch.device(args.device))
    names = [name for name, (_, dtype) in VARIANTS.items() if with_bf16 or dtype is None]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            results[name].append(_measure_apart(name, args))
    seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()}
    memory = {name: statistics.median(r["bytes"] for r in runs) / 1e9 for name, runs in results.items()}
    rows = [(name, seconds[name], 2 * args.batch / seconds[name], memory[name]) for name in names]
    title = (
        f"S4P step, {args.backbone} + UperNet, {args.batch} labeled + {args.batch} unlabeled images of "
        f"{args.size}². Device: {device_name(args.device)}"
        f"{f', {args.threads} thread(s)' if args.threads and args.device == 'cpu' else ''}."
    )
    ratios = [
        f"- {ours} against {plain}: {seconds[plain] / seconds[ours]:.2f} times as fast, "
        f"{memory[ours] / memory[plain]:.2f} of the peak memory"
        for ours, plain in PAIRS
        if {ours, plain} <= set(names)
    ]
    return "\n\n".join([title, markdown_table(HEADER, rows), "\n".join(ratios)])


def _measure_apart(variant: str, args: argparse.Namespace) -> dict[str, float]:
    options = ("backbone", "size", "batch", "steps", "threads", "device")
    command = [sys.executable, "-m", "benchmarks.s4p_step", "--variant", variant]
    for option in options:
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="labeled images, and as many unlabeled ones")
    parser.add_argument("--steps", type=int, default=3, help="steps per measurement, after a first one")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a step; 0 = PyTorch's choice")
    parser.add_argument("--bf16", action="store_true", help="measure bf16 even where it is not native")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; with ``--variant`` measures one of its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.s4p_step", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="processes per variant; the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    print(json.dumps(measure(args)) if args.variant else run(args))


if __name__ == "__main__":
    main()
