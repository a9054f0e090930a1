"""Freed memory stays with the process, where that is possible."""

import platform
import subprocess
import sys

import pytest

# A block far above the size from which glibc asks the operating system for each block on its own.
SCRIPT = """
import resource, sys
import torch
from s5.ops.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(12):  # until holes of the right size are there
    torch.ones(25_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_large_blocks_are_used_again_without_new_pages() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", SCRIPT, how], text=True))
        for how in ("keep", "default")
    }
    assert faults["keep"] < 100 < faults["default"]
