"""Scores that select the best weights of several tasks."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from s5.checkpoints.reading import read_checkpoint
from s5.errors import ConfigError
from s5.segmentation import mdf
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.trained import find_spec
from s5.training.config import load_config
from tests.helpers.mdf_runs import TASKS, arguments, configuration, script, write_datasets


def config(tmp_path: Path, **changes: object) -> MDFConfig:
    """The tiny configuration with a third task; `changes` with ``__`` for a dot."""
    values = configuration(tmp_path)
    values["tasks"]["huts"] = {**values["tasks"]["roofs"], "labels": {"classes": ["hut"]}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return load_config(MDFConfig, path, overrides)


def scores(cfg: MDFConfig) -> dict[str, list[str]]:
    return mdf.best_scores(cfg, mdf.build_tables(cfg))


def test_by_the_metric_of_each_task_unless_one_is_given_for_all(tmp_path: Path) -> None:
    own = {"best_ponds": ["ponds/mIoU"], "best_roofs": ["roofs/mF1"], "best_huts": ["huts/mIoU"]}
    changes = {"tasks__roofs__evaluation__metric": "mF1"}
    assert scores(config(tmp_path, **changes)) == {"best": ["ponds/mIoU", "roofs/mF1", "huts/mIoU"], **own}
    given = config(tmp_path, **changes, schedule__best_metric="mIoU")
    assert scores(given) == {"best": ["ponds/mIoU", "roofs/mIoU", "huts/mIoU"], **own}
    given = config(tmp_path, **changes, schedule__best_tasks=["roofs", "ponds"])
    assert scores(given)["best"] == ["roofs/mF1", "ponds/mIoU"]


def test_a_single_task_keeps_its_own_metric(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        tasks__roofs__evaluation__metric="mF1",
        schedule__best_metric="mIoU",
        schedule__best_tasks=["ponds"],
    )
    alone = mdf.select_tasks(cfg, ["roofs"])
    assert scores(alone) == {"best": ["roofs/mF1"]}
    assert MDFConfig.model_validate(alone.model_dump()) == alone, "config.yaml of the run can be read again"


def test_selected_tasks(tmp_path: Path) -> None:
    cfg = config(tmp_path, schedule__best_tasks=["roofs", "ponds"])
    assert scores(mdf.select_tasks(cfg, ["huts", "ponds"]))["best"] == ["ponds/mIoU"]
    with pytest.raises(ConfigError, match=r"schedule.best_tasks \['ponds'\]: --tasks huts roofs leaves none"):
        mdf.select_tasks(config(tmp_path, schedule__best_tasks=["ponds"]), ["huts", "roofs"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule__best_tasks": ["ponds", "lakes"]}, r"best_tasks .*lakes.*tasks ponds, roofs, huts"),
        ({"schedule__best_tasks": []}, r"must name some of the tasks"),
        ({"schedule__best_metric": "IoU"}, r"schedule.best_metric = 'IoU'.*'mIoU'"),
    ],
)
def test_bad_values(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_a_mean_without_background_needs_one_in_every_task(tmp_path: Path) -> None:
    cfg = config(tmp_path, schedule__best_metric="mF1_no_background")
    with pytest.raises(
        ConfigError, match=r"best_metric mF1_no_background: the labels of ponds have no backg"
    ):
        scores(cfg)
    only = config(tmp_path, schedule__best_metric="mF1_no_background", schedule__best_tasks=["huts"])
    assert scores(only)["best"] == ["huts/mF1_no_background"]


def test_a_run_chooses_by_it(tmp_path: Path) -> None:
    root = write_datasets(tmp_path / "data")
    changes = {"schedule.best_metric": "mF1", "schedule.best_tasks": ["roofs"], "schedule.epochs": 1}
    assert script().main(arguments(root, tmp_path / "run", **changes)) == 0
    final = json.loads((tmp_path / "run/final_metrics.json").read_text())
    best = read_checkpoint(tmp_path / "run/vit_t_moe_mdf_best.pth")["meta"]
    assert best["roofs/mF1"] == pytest.approx(final["roofs/mF1"]) and "ponds/mIoU" not in best
    for task in TASKS:
        assert f"{task}/mIoU" in read_checkpoint(tmp_path / f"run/vit_t_moe_mdf_best_{task}.pth")["meta"]


@pytest.mark.slow
def test_epsilon_of_the_norms_is_kept_with_the_weights(tmp_path: Path) -> None:
    """A model of another epsilon is rebuilt with it from its file."""
    root = write_datasets(tmp_path / "data")
    changes = {"model.norm_eps": 0.25, "schedule.epochs": 1}
    assert script().main(arguments(root, tmp_path / "run", **changes)) == 0
    path = tmp_path / "run/vit_t_moe_mdf.pth"
    model = find_spec(path, None, path).build(path, torch.device("cpu"), None)
    assert {block.norm1.eps for block in model.segmentor.backbone.blocks} == {0.25}
    assert (
        script("evaluate").main([str(path), "--device", "cpu", "--work-dir", str(tmp_path / "scores")]) == 0
    )
    found = json.loads((tmp_path / "scores/scores.json").read_text())
    final = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert {task: found[task]["mIoU"] for task in TASKS} == pytest.approx(
        {task: final[f"{task}/mIoU"] for task in TASKS}
    )
