"""Time and peak memory of training steps, S5's against a plain reference implementation.

Every measurement runs in a separate process, in turn, so that memory is clean and load on the machine hits
all of them.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from benchmarks import timing
from benchmarks.timing import device_name, markdown_table
from s5.backbones import get_architecture
from s5.compat.memory import keep_freed_memory, peak_memory
from s5.compat.precision import has_bf16

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

Step = Callable[[], object]
Build = Callable[[argparse.Namespace, "torch.dtype | None"], Step]


class StepBenchmark(NamedTuple):
    """One kind of training step.

    Attributes:
        module: Where it is defined, to be run with `python -m`.
        plain: Builds the plain step and its batch for options and an autocast type.
        ours: Builds S5's.
        what: Description of a step, for the title.
        images: Images of a step.
    """

    module: str
    plain: Build
    ours: Build
    what: Callable[[argparse.Namespace], str]
    images: Callable[[argparse.Namespace], int]

    def run(self, args: argparse.Namespace) -> str:
        """Measure all variants in turn; returns the table with the ratios."""
        with_bf16 = args.bf16 or has_bf16(torch.device(args.device))
        names = [name for name, (_, dtype) in VARIANTS.items() if with_bf16 or dtype is None]
        results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(args.repeats):
            for name in names:
                results[name].append(self._measure_apart(name, args))
        seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()}
        memory = {name: statistics.median(r["bytes"] for r in runs) / 1e9 for name, runs in results.items()}
        rows = [(name, seconds[name], self.images(args) / seconds[name], memory[name]) for name in names]
        threads = f", {args.threads} thread(s)" if args.threads and args.device == "cpu" else ""
        ratios = [
            f"- {ours} against {plain}: {seconds[plain] / seconds[ours]:.2f} times as fast, "
            f"{memory[ours] / memory[plain]:.2f} of the peak memory"
            for ours, plain in PAIRS
            if {ours, plain} <= set(names)
        ]
        title = f"{self.what(args)}. Device: {device_name(args.device)}{threads}."
        return "\n\n".join([title, markdown_table(HEADER, rows), "\n".join(ratios)])

    def measure(self, args: argparse.Namespace) -> dict[str, float]:
        """Measure one variant in this process: median seconds of a step and peak memory in bytes."""
        torch.manual_seed(0)
        if args.threads:
            torch.set_num_threads(args.threads)
        clock = timing.clock(args.device, args.threads)
        plain, dtype = VARIANTS[args.variant]
        if not plain and args.device == "cpu":
            keep_freed_memory()  # as in every training run
        before = peak_memory(torch.device(args.device))
        step = (self.plain if plain else self.ours)(args, dtype)
        seconds = []
        for _ in range(args.steps + 1):
            start = clock()
            step()
            if args.device != "cpu":
                torch.cuda.synchronize(args.device)
            seconds.append(clock() - start)
        return {
            "seconds": statistics.median(seconds[1:]),
            "bytes": peak_memory(torch.device(args.device)) - before,
        }

    def main(self, description: str | None, argv: Sequence[str] | None = None) -> None:
        """Print the table; with `--variant` measures one of its rows."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}", description=description, allow_abbrev=False
        )
        add_arguments(parser)
        parser.add_argument(
            "--repeats", type=int, default=3, help="processes per variant; the median is reported"
        )
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
        args = parser.parse_args(argv)
        print(json.dumps(self.measure(args)) if args.variant else self.run(args))

    def _measure_apart(self, variant: str, args: argparse.Namespace) -> dict[str, float]:
        options = ("backbone", "size", "batch", "steps", "threads", "device")
        command = [sys.executable, "-m", self.module, "--variant", variant]
        for option in options:
            command += [f"--{option}", str(getattr(args, option))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def expert_channels(args: argparse.Namespace) -> int:
    """Expert channels of the chosen backbone: 256 as published, a third of the width of a small one."""
    return min(256, get_architecture(args.backbone).max_expert_channels // 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all step benchmarks."""
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images of each source in a step")
    parser.add_argument("--steps", type=int, default=3, help="steps per measurement, after a first one")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a step; 0 = PyTorch's choice")
    parser.add_argument("--bf16", action="store_true", help="measure bf16 even where it is not native")
