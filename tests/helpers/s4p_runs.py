"""Tiny S4P runs for tests: generated images, a configuration, and ways to start `train.py`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from s5.data.image_io import write_image

REPO = Path(__file__).parents[2]
SIZE = 64
CLASSES = ["ground", "water", "roof"]
COLORS = np.array([[90, 140, 60], [40, 60, 120], [170, 80, 60]])


def write_dataset(root: Path, labeled: int = 6, unlabeled: int = 8, val: int = 3) -> Path:
    """Images of coloured noise with a mask that can be learned, in the folders of the published corpus."""
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"labeled/labeled": [], "unlabeled/pool": [], "val": []}
    for kind, count in (("labeled/labeled", labeled), ("unlabeled/pool", unlabeled), ("val", val)):
        for i in range(count):
            image, mask = learnable_pair(rng, len(CLASSES), 72, 80)
            name = f"{kind}/images/{i:03d}.png"
            line = name
            write_image(root / name, image)
            if not kind.startswith("unlabeled"):
                write_image(root / f"{kind}/masks/{i:03d}.png", mask)
                line += f" {kind}/masks/{i:03d}.png"
            lists[kind].append(line)
    for kind, lines in lists.items():
        path = root / "splits" / f"{kind}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return root


def learnable_pair(
    rng: np.random.Generator, classes: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Noise (H, W, 3) around a colour per class, and the mask (H, W) of 4 x 4 blocks."""
    blocks = rng.integers(0, classes, (4, 4), dtype=np.uint8)
    mask = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    image = np.clip(COLORS[mask] + rng.normal(0, 12, (*mask.shape, 3)), 0, 255)
    return image.astype(np.uint8), mask


def options(root: Path, **changes: object) -> list[str]:
    """`--cfg-options` that turn the shipped configuration into a run of seconds."""
    values: dict[str, object] = {
        "data_root": root,
        "data.labels": json.dumps({"name": "test", "classes": CLASSES}),
        "data.unlabeled.split": "splits/unlabeled/pool.txt",
        "data.labeled.batch_size": 2,
        "data.unlabeled.batch_size": 2,
        "data.crop": SIZE,
        "data.val.crop": SIZE,
        "data.val.stride": 48,
        "data.workers": 0,
        "model.decoder_channels": 8,
        "fixmatch.conf_thresh": 0.4,
        "schedule.total_iters": 6,
        "schedule.val_interval": 6,
        "schedule.checkpoint_interval": 2,
        "schedule.log_interval": 1,
        "optim.lr": 1e-4,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--cfg-options", *(f"{key}={value}" for key, value in values.items())]


def arguments(root: Path, work_dir: Path, *extra: str, **changes: object) -> list[str]:
    """Command-line arguments of a tiny run."""
    base = ["--backbone", "vit_t", "--init", "none", "--device", "cpu", "--work-dir", str(work_dir)]
    return [*base, *extra, *options(root, **changes)]


def script(name: str = "train") -> ModuleType:
    """An entry script of the tree as a module."""
    return load_script(REPO / "S4_Pretrain" / f"{name}.py")


def load_script(path: Path) -> ModuleType:
    """A script, which is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment() -> dict[str, str]:
    """Environment of a started process: one thread, so that sums do not depend on scheduling."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPO)}


def start(args: list[str], processes: int = 1, port: int = 29511) -> subprocess.Popen:
    """Start `train.py`, under torchrun when there are several processes."""
    train = ["-m", "tests.helpers.shallow_vit", str(REPO / "S4_Pretrain/train.py")]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else ()), *train, *args],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(work_dir: Path) -> dict[int, tuple[float, float, float]]:
    """Logged (loss, loss_s, loss_u) by iteration; a later record of an iteration replaces an earlier one."""
    return {r["step"]: (r["loss"], r["loss_s"], r["loss_u"]) for r in records(work_dir) if "loss" in r}


def validations(work_dir: Path) -> dict[int, float]:
    """Logged mIoU by iteration."""
    return {r["step"]: r["mIoU"] for r in records(work_dir) if "mIoU" in r}


def records(work_dir: Path) -> list[dict]:
    """All records of the log."""
    return [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
