"""Multi-dataset runs of two processes on the CPU, with a task that joins late."""

import json
from pathlib import Path

import pytest
import torch

from s5.checkpoints.reading import read_checkpoint
from tests.helpers.mdf_runs import TASKS, arguments, losses, script, write_datasets
from tests.helpers.processes import start_ranks

pytestmark = pytest.mark.slow

CHANGES = {"tasks.ponds.start_epoch": 1, "schedule.steps_per_epoch": 2, "optim.lr": 0.001}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("data"))


def train(root: Path, work_dir: Path, *extra: str, **changes: object) -> None:
    args = arguments(root, work_dir, *extra, **CHANGES, **changes)
    for process in start_ranks("md_finetune", args, work_dir.parent, 2):
        assert process.wait() == 0, process.text()


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "trained"
    train(root, work_dir)
    return work_dir


def test_late_task_trains_and_is_reduced_over_processes(root: Path, trained: Path) -> None:
    assert ["loss_ponds" in dict(losses(trained)[step]) for step in range(1, 5)] == [False, False, True, True]
    before, after = (read_checkpoint(trained / f"iter_{step}.pth") for step in (2, 4))
    assert after["data"]["consumed"] == [8, 16] and before["data"]["consumed"] == [0, 8]
    for name, value in after["state_dict"].items():
        if "heads.ponds" in name and name.endswith("classifier.weight"):
            assert not torch.equal(value, before["state_dict"][name])


def test_resume_across_the_start_of_a_task_equals_the_whole_run(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_2.pth").write_bytes((trained / "iter_2.pth").read_bytes())
    train(root, work_dir, "--resume")
    assert losses(work_dir) == {step: value for step, value in losses(trained).items() if step > 2}
    ours, theirs = (read_checkpoint(run / "iter_4.pth")["state_dict"] for run in (work_dir, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_scores_of_two_processes_are_those_of_one(root: Path, trained: Path, tmp_path: Path) -> None:
    """The six validation images are three of each task; none is counted twice."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_4.pth").write_bytes((trained / "iter_4.pth").read_bytes())
    assert script().main(arguments(root, work_dir, "--resume", **CHANGES)) == 0
    ours, theirs = (json.loads((run / "final_metrics.json").read_text()) for run in (work_dir, trained))
    assert ours == theirs
    assert {f"{task}/mIoU" for task in TASKS} <= set(ours)


def test_adapters_of_a_late_task_train_in_several_processes(root: Path, tmp_path: Path) -> None:
    train(root, tmp_path / "run", **{"model.finetune": "lora", "model.lora.rank": 2})
    before, after = (read_checkpoint(tmp_path / f"run/iter_{n}.pth")["state_dict"] for n in (2, 4))
    updates = {name for name in after if name.endswith(".lora.ponds.b")}
    assert updates and not any(before[name].any() for name in updates)
    assert all(after[name].any() for name in updates)
