"""`Object_Detection/tools/test.py`: scores are those of training, in one process and in several."""

import csv
import json
from pathlib import Path

import pytest

from tests.detection.predict.det_models import evaluate, files, rows
from tests.helpers.processes import start_ranks
from tests.helpers.s4p_runs import REPO

MEANS = ("mAP50", "mAP75", "mAP50:95", "mAP50_area", "mAP75_area", "mAP50:95_area")


@pytest.fixture(scope="module")
def evaluated(config: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    options = ("--out", folder / "texts", "--submit", f"b={folder / 'b.zip'}")
    assert evaluate(config, trained / "vit_t_moe_det", folder / "work", *options) == 0
    return folder


def test_scores_are_those_of_the_last_validation(trained: Path, evaluated: Path) -> None:
    expected = json.loads((trained / "final_metrics.json").read_text())
    report = json.loads((evaluated / "work/scores.json").read_text())
    assert list(report) == ["a", "b"]
    for task, found in report.items():
        assert {name: found[name] for name in MEANS} == {name: expected[f"{task}/{name}"] for name in MEANS}
        assert found["classes"]["box"]["AP50"] == expected[f"{task}/AP50.box"]
        assert 0 < found["mAP50"] < 100, "no score that anything else would have, too"
    assert report["b"]["windows.mAP50"] == expected["b/windows.mAP50"] != report["b"]["mAP50"]
    assert "windows.mAP50" not in report["a"]
    assert (report["a"]["split"], Path(report["a"]["checkpoint"]).name) == ("val", "vit_t_moe_det")


@pytest.mark.parametrize("name", ["iter_2.pth", "vit_t_moe_det_best_b.pth"])
def test_other_checkpoints_of_the_run_and_some_of_the_tasks(
    trained: Path, evaluated: Path, tmp_path: Path, name: str
) -> None:
    """Also with the configuration as the run has left it."""
    assert evaluate(trained / "config.yaml", trained / name, tmp_path, "--tasks", "b,") == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    whole = json.loads((evaluated / "work/scores.json").read_text())
    assert list(report) == ["b"]
    assert {name: report["b"][name] for name in MEANS} == {name: whole["b"][name] for name in MEANS}


def test_tables_and_pictures(evaluated: Path) -> None:
    report = json.loads((evaluated / "work/scores.json").read_text())
    for task, found in report.items():
        with (evaluated / f"work/{task}_classes.csv").open() as file:
            header, box, mean = csv.reader(file)
        assert header == [
            "class",
            "AP50",
            "AP75",
            "AP50:95",
            "AP50_area",
            "recall50",
            "objects",
            "detections",
        ]
        values = found["classes"]["box"]
        assert box == [
            "box",
            *(f"{values[name]:.4f}" for name in header[1:6]),
            *map(str, list(values.values())[5:]),
        ]
        assert mean[:2] == ["mean", f"{found['mAP50']:.4f}"] and mean[5] == ""
        assert (evaluated / f"work/pictures/val_{task}_000000.jpg").exists()
    log = (evaluated / "work/train.log").read_text()
    lines = {words[0]: words for line in log.splitlines() if (words := line.split())}
    assert float(lines["mean"][1]) == pytest.approx(sum(f["mAP50"] for f in report.values()) / 2, abs=0.006)


def test_detections_are_written_as_text(evaluated: Path) -> None:
    assert files(evaluated / "texts") == ["a/1.txt", "a/2.txt", "a/3.txt", "b/big.txt"]
    report = json.loads((evaluated / "work/scores.json").read_text())
    for task, found in report.items():
        lines = [
            line for path in (evaluated / f"texts/{task}").iterdir() for line in path.read_text().splitlines()
        ]
        assert len(lines) == found["classes"]["box"]["detections"] > 3
        assert {tuple(line.split()[8:10]) for line in lines} == {("box", "0")}
    found = rows(evaluated / "texts/b/big.txt")
    falls = found[:-1, 8] - found[1:, 8]
    assert falls.min() >= 0 and falls.max() > 0
    assert found[:, 0:8:2].mean(1).max() > 64, "of the whole image"


def test_merging_follows_the_configured_nms(config: Path, start: Path, tmp_path: Path) -> None:
    """With a threshold of nearly 1 nothing is dropped of the 10 objects that each of the two windows has."""
    options = ("--tasks", "b", "--out", tmp_path / "texts", "--cfg-options", "model.nms=0.99")
    assert evaluate(config, start, tmp_path / "work", *options) == 0
    assert len(rows(tmp_path / "texts/b/big.txt")) == 20


@pytest.mark.slow
def test_two_processes_give_the_same(config: Path, trained: Path, evaluated: Path, tmp_path: Path) -> None:
    args = [config, trained / "vit_t_moe_det", "--device", "cpu", "--work-dir", tmp_path / "work"]
    args += ["--out", tmp_path / "texts", "--submit", f"b={tmp_path / 'b.zip'}"]
    path = REPO / "Object_Detection/tools/test.py"
    for process in start_ranks(path, [str(arg) for arg in args], tmp_path, 2):
        assert process.wait(120) == 0, process.text()
    for name in (
        "work/scores.json",
        "work/a_classes.csv",
        "b.zip",
        *(f"texts/{n}" for n in files(evaluated / "texts")),
    ):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes(), name
