"""Steps that are not finite in one of two processes: both skip them, and resuming equals the whole run."""

import re
from pathlib import Path

import pytest
import torch

from s5.checkpoints.reading import read_checkpoint
from tests.helpers.processes import SCRIPTS, start_ranks
from tests.helpers.s4p_runs import arguments, records, write_dataset

OPTIONS = {
    "data.crop": 32,
    "data.labeled.batch_size": 1,
    "data.unlabeled.batch_size": 2,
    "schedule.total_iters": 5,
    "schedule.val_interval": 5,
    "schedule.checkpoint_interval": 1,
    "schedule.keep_checkpoints": 9,
    "schedule.log_interval": 2,
    "optim.lr": 1e-3,
    "fixmatch.pseudo_labels": "ema",
    "fixmatch.conf_thresh": 0.0,
}
pytestmark = pytest.mark.slow
SHORT = {"schedule.total_iters": 4, "schedule.val_interval": 4}
# The second process breaks step 3: its loss, its loss alone, the gradients of all, or its own statistics.
# After every step, each process writes the state it has. Arguments: script, fault, folder, first step.
WRAPPER = """
import os, runpy, sys, torch
from s5.training.guarded_step import GuardedOptimWrapper
from s5.segmentation.methods.fixmatch import FixMatch

path, fault, folder, first = sys.argv.pop(1), *(sys.argv.pop(1) for _ in range(3))
original_loss, original_update = FixMatch.loss, GuardedOptimWrapper.update_params
rank, step = os.environ["RANK"], int(first) - 1

def loss(self, *args, **batch):
    global step
    losses = original_loss(self, *args, **batch)
    step += 1
    if step != 3 or rank != "1":
        return losses
    value = losses["loss"]
    if fault == "loss":
        value = value * torch.nan
    elif fault == "loss_alone":
        value = value + torch.inf
    elif fault == "gradient":
        value = value + (self.segmentor.backbone.pos_embed * 0).sum().sqrt()
    elif fault == "statistics":
        next(b for n, b in self.segmentor.named_buffers() if n.endswith("running_var")).data.fill_(torch.inf)
    return losses | {"loss": value}

def update(self, loss):
    original_update(self, loss)
    state = {"model": dict(self._model.state_dict()), "optimizer": self.optimizer.state_dict()["state"]}
    torch.save(state, f"{folder}/{rank}_{step}.pt")

FixMatch.loss, GuardedOptimWrapper.update_params = loss, update
runpy.run_path(path, run_name="__main__")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def train(root: Path, work_dir: Path, fault: str, *extra: str, first: int = 1, **changes: object) -> None:
    wrapper = work_dir.parent / "wrapper.py"
    wrapper.write_text(WRAPPER)
    given = [str(SCRIPTS["train"]), fault, str(work_dir.parent), str(first)]
    args = arguments(root, work_dir, *extra, **OPTIONS | changes)
    for process in start_ranks(wrapper, [*given, *args], work_dir.parent, 2):
        assert process.wait() == 0, process.text()


def state(folder: Path, rank: int, step: int) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / f"{rank}_{step}.pt")
    of_weights = {f"{i}.{k}": torch.as_tensor(v) for i, s in saved["optimizer"].items() for k, v in s.items()}
    return saved["model"] | of_weights


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(scope="module")
def skipped(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "skipped"
    train(root, work_dir, "loss")
    return work_dir


def check_third_is_skipped(work_dir: Path, finding: str) -> None:
    for rank in (0, 1):
        before, at, after = (state(work_dir.parent, rank, step) for step in (2, 3, 4))
        assert differing(before, at) == []
        assert differing(at, after)
        assert all(value.isfinite().all() for value in at.values())
    log = (work_dir / "train.log").read_text()
    assert re.findall(r"skipped iteration (\d), (.*?), samples: labeled/.*unlabeled/.*", log) == [
        ("3", finding)
    ]
    assert [r["skipped_steps"] for r in records(work_dir) if "loss" in r] == [0, 1]
    assert read_checkpoint(work_dir / "iter_3.pth")["skipped_steps"] == {
        "total": 1,
        "in_a_row": 1,
        "recent": [3],
    }


def test_a_loss_of_one_process_skips_the_step_of_both(skipped: Path) -> None:
    check_third_is_skipped(skipped, "rank 1: loss nan")


@pytest.mark.parametrize(
    ("fault", "finding"),
    [("loss_alone", "rank 1: loss inf"), ("statistics", "rank 1: running statistics not finite")],
)
def test_also_where_all_gradients_are_finite(root: Path, tmp_path: Path, fault: str, finding: str) -> None:
    train(root, tmp_path / "run", fault, **SHORT)
    check_third_is_skipped(tmp_path / "run", finding)


def test_gradients_that_are_not_finite_name_the_samples_of_both(root: Path, tmp_path: Path) -> None:
    """The origin of reduced gradients is unknown."""
    train(root, tmp_path / "run", "gradient", **SHORT)
    log = (tmp_path / "run/train.log").read_text()
    found = re.findall(r"skipped iteration 3, rank (\d): gradients not finite, samples: labeled/", log)
    assert found == ["0", "1"]
    for rank in (0, 1):
        assert differing(*(state(tmp_path, rank, step) for step in (2, 3))) == []


@pytest.mark.parametrize("step", [2, 3])
def test_resume_after_a_skipped_step_equals_the_whole_run(
    root: Path, skipped: Path, tmp_path: Path, step: int
) -> None:
    """Between log lines too: the records are the same."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / f"iter_{step}.pth").write_bytes((skipped / f"iter_{step}.pth").read_bytes())
    train(root, work_dir, "loss", "--resume", first=step + 1)
    for i in range(step + 1, 6):
        assert differing(state(tmp_path, 0, i), state(skipped.parent, 0, i)) == []
    ours, theirs = (read_checkpoint(run / "iter_5.pth") for run in (work_dir, skipped))
    assert ours["skipped_steps"] == theirs["skipped_steps"]
    assert ours["pseudo_labels"] == theirs["pseudo_labels"]
    times = {"time", "data_time", "images_per_s", "data_wait", "peak_memory_gib"}
    mine, whole = (
        [{k: v for k, v in r.items() if k not in times} for r in records(run) if r["step"] > step]
        for run in (work_dir, skipped)
    )
    assert mine == whole


def test_pixels_of_all_processes_are_counted(skipped: Path) -> None:
    """Steps 3 to 5 begin two windows; of the skipped step nothing is counted."""
    counted = {step: read_checkpoint(skipped / f"iter_{step}.pth")["pseudo_labels"] for step in range(1, 6)}
    assert [counted[step]["steps"] for step in range(1, 6)] == [1, 0, 1, 0, 1]
    confident = [sum(counted[step]["counts"][0]) for step in (1, 3, 5)]
    labeled = [sum(counted[step]["counts"][1]) for step in (1, 3, 5)]
    assert confident[1] == labeled[1] == 0
    assert max(confident[0], confident[2]) > 2 * 32 * 32, "more than one process has"
    assert all(0 < count <= 2 * 32 * 32 for count in (labeled[0], labeled[2]))
