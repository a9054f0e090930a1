"""Checkpoints of tiny random detectors, as training writes them, and ways to run the commands on them."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch

from s5.data.image_io import write_image
from s5.detection.network import DetectionModel, Settings, build_detector
from tests.helpers.det_runs import SIZE, script

EXPERTS = 48
SETTINGS = Settings(channels=32, fc_channels=256, proposals=20, max_per_img=10, score_thr=0.0)
TASKS = {"harbour": ("ship", "crane"), "roads": ("car",)}


def write_detector(
    path: Path, tasks: Mapping[str, tuple[str, ...]] = TASKS, backbone: str = "vit_t_moe", **meta: object
) -> DetectionModel:
    """Write random weights, whose scores differ between places, and return the model."""
    torch.manual_seed(0)
    experts = EXPERTS if backbone.endswith("_moe") else 0
    counts = {name: len(classes) for name, classes in tasks.items()}
    detector = build_detector(
        backbone.removesuffix("_moe"), counts, SIZE, expert_channels=experts, settings=SETTINGS
    ).eval()
    with torch.no_grad():
        for head in detector.heads.values():
            head.roi_head.bbox_head.fc_cls.weight *= 30
            head.rpn_head.rpn_cls.weight *= 30
    known = {
        "backbone": backbone,
        "expert_channels": experts,
        "img_size": SIZE,
        "tasks": {name: list(classes) for name, classes in tasks.items()},
        "settings": asdict(SETTINGS),
        "iteration": 1,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": detector.state_dict(), "meta": known | meta}, path)
    return DetectionModel(detector)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A blurred random image (H, W, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_geotiff(path: Path, pixels: np.ndarray, **place: object) -> None:
    """Write a tiled TIFF."""
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", **shape, **tiles, **place) as file:
            file.write(pixels.transpose(2, 0, 1))


def write_pictures(folder: Path) -> Path:
    """Three images of different sizes and formats in folders; two are larger than a window."""
    for seed, (name, shape) in enumerate(
        (("a.png", (48, 64)), ("deep/b.c.jpg", (100, 150)), ("deep/d.png", (30, 90)))
    ):
        write_image(folder / name, picture(*shape, seed))
    return folder


def predict(checkpoint: Path, given: object, out: Path, *options: object) -> int:
    """Run `predict.py` with a threshold that all detections pass; options may say otherwise."""
    given = given if isinstance(given, list) else [given]
    common = ["--out", out, "--device", "cpu", "--precision", "fp32", "--score-thr", "0"]
    return script("predict").main([str(part) for part in (checkpoint, *given, *common, *options)])


def evaluate(config: Path, checkpoint: Path, work_dir: Path, *options: object) -> int:
    """Run `test.py`."""
    common = ["--device", "cpu", "--work-dir", work_dir]
    return script("test").main([str(part) for part in (config, checkpoint, *common, *options)])


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(path: Path) -> np.ndarray:
    """Corners and score of each line of a text of detections."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return np.array([[*line[:8], line[10]] for line in lines], float).reshape(-1, 9)


def fails(
    error: type[Exception], message: str, config: Path, checkpoint: Path, folder: Path, *options: object
) -> None:
    """The evaluation stops with a user error, which is printed without a traceback."""
    with pytest.raises(error, match=message):
        evaluate(config, checkpoint, folder / "work", *options)
