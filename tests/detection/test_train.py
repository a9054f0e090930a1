"""Detection runs of the entry script: outputs, equal resume, scores of whole images, configurations."""

import json
from pathlib import Path

import pytest
import torch

from s5.checkpoints.reading import read_checkpoint
from s5.data.datasets import DiorR, Dota
from s5.data.labels import get_classes
from s5.detection.config import DetConfig
from s5.detection.experiment import DetectionExperiment
from s5.detection.metric import build_metrics
from s5.errors import ConfigError
from s5.training.config import load_python_config
from tests.helpers.det_runs import losses, script, write_config, write_datasets
from tests.helpers.s4p_runs import REPO

FOLDER = REPO / "Object_Detection/configs/obb/oriented_rcnn"
CONFIGS = sorted(path for part in ("mtd", "single") for path in (FOLDER / part).glob("*.py"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(write_datasets(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "run"
    launcher = ["--launcher", "pytorch", "--local-rank=0", "--options", "find_unused_parameters=False"]
    assert script().main([str(config), "--device", "cpu", "--work-dir", str(work_dir), *launcher]) == 0
    return work_dir


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


def test_trains_on_the_chosen_tasks_only(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    args = [str(config), "--device", "cpu", "--work-dir", str(tmp_path / "run"), "--tasks"]
    assert script().main([*args, "b", "--cfg-options", "schedule.epochs=1", "schedule.milestones=[]"]) == 0
    scores = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert "b/mAP50" in scores and "a/mAP50" not in scores
    weights = read_checkpoint(tmp_path / "run/vit_t_moe_det.pth")
    assert {name.split(".")[1] for name in weights["state_dict"] if name.startswith("heads.")} == {"b"}
    with pytest.raises(ConfigError, match="unknown task 'c'; the configuration's tasks: a, b"):
        script().main([*args, "c"])


@pytest.mark.slow
def test_resume_equals_the_uninterrupted_run(config: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_1.pth").write_bytes((finished / "iter_1.pth").read_bytes())
    args = [str(config), "--device", "cpu", "--work-dir", str(tmp_path / "run"), "--resume"]
    assert script().main(args) == 0
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
        dataset, parts = written[name]
        assert get_classes(task.classes)
        for where in (task.train, task.val):
            for kind in ("images", "annotations"):
                folders = getattr(where, kind)
                for folder in folders if isinstance(folders, tuple) else (folders,):
                    assert folder.parts[0] == dataset.name and folder.parts[1] in parts
                    assert folder.parts[2] == kind
            names = where.names if isinstance(where.names, tuple) else (where.names,)
            folders = where.images if isinstance(where.images, tuple) else (where.images,)
            lists = [Path(dataset.name, "splits", f"{folder.parts[1]}.txt") for folder in folders]
            assert list(names) == lists, "folders may hold windows of before"


def test_python_configuration_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("tasks = dict(\n")
    with pytest.raises(ConfigError, match=r"broken.py: cannot be read"):
        load_python_config(DetConfig, path)
    with pytest.raises(
        ConfigError, match=r"milestones \[8, 12\] must increase and be smaller than schedule.epochs 12"
    ):
        load_python_config(DetConfig, CONFIGS[0], ["schedule.milestones=[8, 12]"])


def test_every_task_is_built_with_its_whole_labels(config: Path) -> None:
    cfg = load_python_config(DetConfig, config, ["model.nms=0.25"])
    experiment = DetectionExperiment(cfg)
    one, other = build_metrics(cfg, experiment.classes, experiment.build_val_loader())
    assert (one.merge, other.merge) == (False, True)
    assert (one.whole, {name: len(objects) for name, objects in other.whole.items()}) == (None, {"big": 2})
    assert other.nms == 0.25
