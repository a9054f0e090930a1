"""Detection runs of the entry script: outputs, equal resume, scores of whole images, configurations."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from s4p_runs import REPO, load_script

from s5.data.oriented.classes import get_classes
from s5.data.prepare.dior_r import DiorR
from s5.data.prepare.dota import Dota
from s5.engine import det
from s5.engine.checkpoint import read_checkpoint
from s5.engine.config import ConfigError, load_python_config
from s5.engine.det_config import DetConfig

CONFIGS = sorted((REPO / "Object_Detection/configs/obb").rglob("*.py"))
SIZE = 64


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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks; the validation images of the second are windows of one whole image."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "a", ["1", "2", "3"])
    write_images(root / "b", ["big__64__0___0", "big__64__64___0"])
    (root / "b/whole").mkdir()
    (root / "b/whole/big.txt").write_text("8 15 24 15 24 25 8 25 box 0\n100 35 116 35 116 45 100 45 box 0\n")
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
model = dict(expert_channels=48, proposals=20, max_per_img=10, score_thr=0.0)
optim = dict(warmup_iters=1)
schedule = dict(epochs=3, milestones=(2,), steps_per_epoch=1, val_interval=3)
schedule.update(keep_checkpoints=9, log_interval=1)
"""
    )
    return path


def train() -> ModuleType:
    return load_script(REPO / "Object_Detection/tools/train.py")


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "run"
    launcher = ["--launcher", "pytorch", "--local-rank=0", "--options", "find_unused_parameters=False"]
    assert train().main([str(config), "--device", "cpu", "--work-dir", str(work_dir), *launcher]) == 0
    return work_dir


def losses(work_dir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_writes_what_the_script_says(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"vit_t_moe_det.pth", "vit_t_moe_det_best.pth", "config.yaml", "final_metrics.json"} <= names
    assert {"vit_t_moe_det_best_a.pth", "vit_t_moe_det_best_b.pth"} <= names
    assert {path.name for path in (finished / "pictures").iterdir()} == {
        "val_a_000003.jpg",
        "val_b_000003.jpg",
    }
    assert sorted(losses(finished)) == [1, 2, 3]


def test_scores_of_windows_are_those_of_the_whole_image(finished: Path) -> None:
    scores = json.loads((finished / "final_metrics.json").read_text())
    assert {"a/mAP50", "b/mAP50", "b/windows.mAP50", "b/AP50.box"} <= set(scores)
    assert "a/windows.mAP50" not in scores


def test_resume_equals_the_uninterrupted_run(config: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_1.pth").write_bytes((finished / "iter_1.pth").read_bytes())
    args = [str(config), "--device", "cpu", "--work-dir", str(tmp_path / "run"), "--resume"]
    assert train().main(args) == 0
    assert losses(tmp_path / "run") == {step: value for step, value in losses(finished).items() if step > 1}
    ours, theirs = (read_checkpoint(run / "iter_3.pth")["state_dict"] for run in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_read_what_is_prepared(path: Path) -> None:
    cfg = load_python_config(DetConfig, path)
    assert (cfg.schedule.epochs, cfg.schedule.milestones, cfg.optim.lr) == (12, (8, 11), 1e-4)
    assert cfg.backbone.removesuffix("_moe") in path.stem
    written = {"dior": (DiorR, {"train", "val", "test"}), "dota": (Dota, {"train", "val"})}
    for name, task in cfg.tasks.items():
        recipe, parts = written[name]
        assert get_classes(task.classes)
        for where in (task.train, task.val):
            for kind in ("images", "annotations"):
                folders = getattr(where, kind)
                for folder in folders if isinstance(folders, tuple) else (folders,):
                    assert folder.parts[0] == recipe.command and folder.parts[1] in parts
                    assert folder.parts[2] == kind


def test_python_configuration_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("tasks = dict(\n")
    with pytest.raises(ConfigError, match=r"broken.py: cannot be read"):
        load_python_config(DetConfig, path)
    with pytest.raises(ConfigError, match=r"milestones \[8, 12\] must rise and lie below schedule.epochs 12"):
        load_python_config(DetConfig, CONFIGS[0], ["schedule.milestones=[8, 12]"])


def test_every_task_is_built_with_its_whole_labels(config: Path) -> None:
    cfg = load_python_config(DetConfig, config)
    one, other = det.build_metrics(cfg, det.build_classes(cfg))
    assert (one.merge, other.merge) == (False, True)
    assert other.annotations == cfg.data_root / "b/whole"
