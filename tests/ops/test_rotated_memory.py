"""Memory that the operators take for very many rotated boxes, measured in a process of its own."""

import json
from pathlib import Path

import pytest

from tests.helpers.processes import start

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tests.helpers.rotated_boxes import random_boxes
from s5.compat.memory import peak_memory
from s5.ops.rotated_iou import rotated_iou
from s5.ops.rotated_nms import rotated_nms
from s5.ops.rotated_roi_align import Sampling, rotated_roi_align

torch.set_num_threads(1)
scores, labels = torch.rand(100_000), torch.arange(100_000) % 18

def spread():
    return len(rotated_nms(random_boxes(100_000, 20_000, (8, 120)), scores, 0.1, labels))

def heap():
    return len(rotated_nms(random_boxes(10_000, 50, (100, 120)), scores[:10_000], 0.1))

def table():
    boxes = random_boxes(100_000, 4_000, (8, 120))
    return rotated_iou(boxes, boxes[:1000]).count_nonzero().item()

def regions():
    features = torch.randn(1, 8, 256, 256, requires_grad=True)
    rois = torch.cat((torch.zeros(60, 1), random_boxes(60, 1024, (1000, 1200))), dim=1)
    rotated_roi_align(features, rois, Sampling((7, 7), 0.25)).sum().backward()
    return features.grad.count_nonzero().item()

before = peak_memory(torch.device("cpu"))
print(json.dumps([globals()[sys.argv[1]](), peak_memory(torch.device("cpu")) - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("what", "results", "megabytes"),
    [
        ("spread", (50_000, 100_000), 300),  # of a table of all pairs: 10 GB as truth values
        ("heap", (1, 10), 1500),  # all 50 million pairs at once: more than 10 GB
        ("table", (100_000, 1_000_000), 400 + 300),  # 400 are the result
        ("regions", (500_000, 600_000), 900),  # 4 million samples of four taps: 1.6 GB at once
    ],
)
def test_memory_is_bounded(what: str, results: tuple[int, int], megabytes: int, tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{SCRIPT}")
    process = start(script, [what], tmp_path)
    assert process.wait() == 0, process.text()
    found, growth = json.loads(process.text().splitlines()[-1])
    assert results[0] <= found <= results[1]
    assert growth < megabytes * 1e6
