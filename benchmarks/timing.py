"""Fair timing of two implementations, and printing of the result."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from s5.training.reports import text_table


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Run all tasks in turn, round after round, so that other load on the machine hits all of them.

    Args:
        tasks: What to time, by name.
        repeats: Rounds that count; one more comes first.
        clock: `time.process_time` for work in a single thread: other processes then do not count.

    Returns:
        Median seconds of each task.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def clock(device: str, threads: int) -> Callable[[], float]:
    """CPU time for a single CPU thread, so that other processes do not count; else wall time."""
    return time.process_time if device == "cpu" and threads == 1 else time.perf_counter


def device_name(device: str) -> str:
    """Name of the device that the figures belong to."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()
    return f"{name}, {len(models) or 'some'} cores"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table in Markdown; numbers with three significant digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return text_table(header, cells, markdown=True)
