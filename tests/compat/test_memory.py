"""Freed memory stays with the process, where that is possible; its peak is told."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s5.compat import memory
from s5.compat.memory import peak_memory

# A block far above the size from which glibc asks the operating system for each block on its own.
SCRIPT = """
import resource, sys
import torch
from s5.compat.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(12):  # until holes of the right size are there
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_large_blocks_are_used_again_without_new_pages() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", SCRIPT, how], text=True))
        for how in ("keep", "default")
    }
    assert faults["keep"] < 100 < faults["default"]


def test_peak_is_of_this_process_and_in_bytes() -> None:
    peak = peak_memory(torch.device("cpu"))
    block = torch.ones(50_000_000)
    grown = peak_memory(torch.device("cpu")) - peak
    assert peak > 50e6
    assert grown < block.nbytes * 1.5
    assert peak_memory(torch.device("cpu")) >= block.nbytes


@pytest.mark.parametrize("status", [b"Name:\tpython\n", b"Name:\tp\xffthon\n", None])
def test_peak_without_a_high_water_mark(status: bytes | None, monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "status"
    if status is not None:
        path.write_bytes(status)
    monkeypatch.setattr(memory, "_STATUS", path)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak_memory(torch.device("cpu")) == pytest.approx(used, rel=0.01)
