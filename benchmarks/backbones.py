"""Time and peak memory of forward and backward passes of backbones, side by side."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks import steps, timing
from benchmarks.timing import device_name, markdown_table
from s5.backbones import create_backbone
from s5.compat.memory import keep_freed_memory, peak_memory

MEASURED = {"forward": "forward, s", "both": "forward + backward, s", "bytes": "peak memory, GB"}


def run(args: argparse.Namespace) -> str:
    """Measure all backbones in turn; returns the table, with ratios to the first."""
    names = args.backbones.split(",")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            results[name].append(_measure_apart(name, args))
    medians = {
        name: [statistics.median(one[key] for one in ones) for key in MEASURED]
        for name, ones in results.items()
    }
    rows: list[list[object]] = []
    for name, (forward, both, memory) in medians.items():
        row = [forward, both, memory / 1e9]
        ratios = [
            value / first for value, first in zip((forward, both, memory), medians[names[0]], strict=True)
        ]
        rows.append([name, *(cell for pair in zip(row, ratios, strict=True) for cell in pair)])
    threads = f", {args.threads} thread(s)" if args.threads and args.device == "cpu" else ""
    precision = "bf16 autocast" if args.bf16 else "float32"
    title = (
        f"Backbones, {args.batch} image(s) of {args.size}², {precision}. "
        f"Device: {device_name(args.device)}{threads}."
    )
    columns = (column for name in MEASURED.values() for column in (name, f"ratio of {name.split(',')[0]}"))
    return f"{title}\n\n{markdown_table(('backbone', *columns), rows)}"


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measure one backbone in this process: median seconds of both passes, peak memory in bytes."""
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = timing.clock(args.device, args.threads)
    if args.device == "cpu":
        keep_freed_memory()  # as in every training run
    device = torch.device(args.device)
    before = peak_memory(device)
    backbone = create_backbone(args.backbone, args.size).to(device, memory_format=torch.channels_last).train()
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    seconds = []
    for _ in range(args.steps + 1):
        times = [clock()]
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = torch.stack([level.float().square().mean() for level in backbone(images)]).sum()
        for stage in (lambda: None, loss.backward):
            stage()
            if device.type != "cpu":
                torch.cuda.synchronize(device)
            times.append(clock())
        backbone.zero_grad()
        seconds.append((times[1] - times[0], times[2] - times[0]))
    forward, both = (statistics.median(values) for values in zip(*seconds[1:], strict=True))
    return {"forward": forward, "both": both, "bytes": peak_memory(device) - before}


def _measure_apart(name: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.backbones", "--backbone", name]
    for option in ("size", "batch", "steps", "threads", "device"):
        command += [f"--{option}", str(getattr(args, option))]
    command += ["--bf16"] if args.bf16 else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of this benchmark alone; it also takes those of the steps."""
    parser.add_argument(
        "--backbones", default="vit_b,vit_b_rvsa", help="backbones to compare, the first is the measure"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the backbone `--backbone` in this process and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backbones", description=__doc__, allow_abbrev=False
    )
    steps.add_arguments(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
