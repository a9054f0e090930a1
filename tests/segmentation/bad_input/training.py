"""Short S4P runs that are to fail, and ways to break files."""

from pathlib import Path

import cv2
import numpy as np
import torch

from s5.segmentation.segmentor import build_segmentor
from tests.helpers.processes import run_here
from tests.helpers.s4p_runs import arguments

SHORT = {"schedule.total_iters": 4, "schedule.val_interval": 4}
LABELED, UNLABELED, VAL = (f"splits/{name}.txt" for name in ("labeled/labeled", "unlabeled/pool", "val"))


def train(
    root: Path, work_dir: Path, *extra: str, init: str = "none", resume: str | None = None, **changes: object
) -> int:
    extra += () if resume is None else ("--resume", resume)
    args = arguments(root, work_dir, *extra, **SHORT | changes)
    args[args.index("none")] = init
    return run_here("train", args)


def assert_nothing_trained(work_dir: Path) -> None:
    assert not list(work_dir.glob("*.pth")) and not (work_dir / "log.jsonl").exists()


def truncate(path: Path) -> None:
    """Make the file at ``path`` the first half of a JPEG."""
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (72, 80, 3), np.uint8))[1].tobytes()
    path.write_bytes(data[: len(data) // 2])


def write_weights(path: Path, backbone: str) -> None:
    """A whole model of zeros, in a small file."""
    with torch.device("meta"):
        shapes = build_segmentor(backbone, {"s4p": 3}, 64, channels=8).state_dict()
    tensors = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}
    torch.save({"state_dict": tensors}, path)
