"""Tiny detection runs for tests: generated datasets, a configuration, the entry scripts."""

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from tests.helpers.s4p_runs import REPO, load_script, records

SIZE = 64
SHORT = (  # options: two steps of a narrow head
    "schedule.epochs=2",
    "schedule.milestones=[1]",
    "schedule.val_interval=2",
    "model.fc_channels=32",
)


def write_images(folder: Path, names: list[str]) -> None:
    """Dark images with two bright boxes each, and their labels."""
    rng = np.random.default_rng(0)
    for part in ("images", "labelTxt"):
        (folder / part).mkdir(parents=True)
    for name in names:
        image = rng.integers(0, 60, (SIZE, SIZE, 3), np.uint8)
        lines = []
        for x, y in ((16, 20), (44, 40)):
            corners = np.array([[x - 8, y - 5], [x + 8, y - 5], [x + 8, y + 5], [x - 8, y + 5]])
            cv2.fillPoly(image, [corners], (200, 200, 200))
            lines.append(" ".join(map(str, corners.ravel())) + " box 0")
        cv2.imwrite(str(folder / f"images/{name}.png"), image)
        (folder / f"labelTxt/{name}.txt").write_text("\n".join(lines) + "\n")


def write_datasets(root: Path) -> Path:
    """Datasets ``a`` and ``b``; the images of ``b`` are windows of one whole image."""
    write_images(root / "a", ["1", "2", "3"])
    write_images(root / "b", ["big__64__0___0", "big__64__64___0"])
    (root / "b/whole").mkdir()
    (root / "b/whole/big.txt").write_text("8 15 24 15 24 25 8 25 box 0\n100 35 116 35 116 45 100 45 box 0\n")
    return root


def write_config(root: Path) -> Path:
    """A configuration of both datasets, of a size for seconds."""
    path = root / "config.py"
    path.write_text(
        f"""
data_root = {str(root)!r}
backbone = "vit_t_moe"
_a = dict(images="a/images", annotations="a/labelTxt")
_b = dict(images="b/images", annotations=("b/labelTxt",))
tasks = dict(
    a=dict(classes=["box"], train=_a, val=_a, batch_size=2),
    b=dict(classes=["box"], train=_b, val=_b, batch_size=1, whole="b/whole"),
)
size = {SIZE}
workers = 0
model = dict(expert_channels=48, channels=32, fc_channels=256, proposals=20, max_per_img=10, score_thr=0.0)
optim = dict(warmup_iters=1)
schedule = dict(epochs=3, milestones=(2,), steps_per_epoch=1, val_interval=3)
schedule.update(keep_checkpoints=9, log_interval=1)
"""
    )
    return path


def script(name: str = "train") -> ModuleType:
    """An entry script of the tree as a module."""
    return load_script(REPO / f"Object_Detection/tools/{name}.py")


def losses(work_dir: Path) -> dict[int, float]:
    """Logged loss by step."""
    return {record["step"]: record["loss"] for record in records(work_dir) if "loss" in record}
