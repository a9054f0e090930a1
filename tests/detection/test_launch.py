"""The launch command of detection as users write it, a resumed run and one process: the same scores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s5.checkpoints.reading import read_checkpoint
from tests.helpers.det_runs import losses, write_config, write_datasets
from tests.helpers.det_runs import script as entry_script
from tests.helpers.processes import PATIENCE, SCRIPTS, free_port, start_ranks
from tests.helpers.s4p_runs import REPO, environment

pytestmark = pytest.mark.slow

TREE = REPO / "Object_Detection"
STEPS, STOP = 12, 8
# Images twice the size of their files: smaller objects fit no anchor, and nothing would be found.
CHANGES = f"""
size, precision = 128, "fp32"
tasks["a"]["batch_size"] = 1
model.update(channels=64, proposals=200, max_per_img=200)
optim = dict(warmup_iters=0, lr=6e-4)
schedule.update(epochs={STEPS}, milestones=({STOP},), val_interval={STEPS}, checkpoint_interval={STOP})
"""
# Writes down which images each process trains on, and runs the script that follows.
WRAPPER = """
import os, runpy, sys
from s5.detection.network import DetectionModel
original = DetectionModel.forward
def forward(self, images, counts, mode="predict", **batch):
    if mode == "loss":
        with open(os.path.join(os.path.dirname(__file__), "names_" + os.environ["RANK"]), "a") as file:
            print(*batch["names"], file=file)
    return original(self, images, counts, mode, **batch)
DetectionModel.forward = forward
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_config(write_datasets(tmp_path_factory.mktemp("data")))
    path.write_text(path.read_text() + CHANGES)
    return path


def launch(*arguments: object) -> str:
    """Run a Python command in the tree's folder and return what it prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(), cwd=TREE, capture_output=True, text=True, timeout=3 * PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(work_dir: Path) -> dict[str, float]:
    return json.loads((work_dir / "final_metrics.json").read_text())


def begin(work_dir: Path, checkpoint: Path) -> Path:
    """A work folder as of a run that was stopped at a checkpoint."""
    work_dir.mkdir()
    (work_dir / checkpoint.name).write_bytes(checkpoint.read_bytes())
    return work_dir


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in the documentation, with another port and output folder and fewer blocks."""
    work_dir = tmp_path_factory.mktemp("runs") / "trained"
    command = f"-m torch.distributed.launch --nproc_per_node=2 --master_port={free_port()}"
    script = "-m tests.helpers.shallow_vit tools/train.py"
    options = "--launcher pytorch --options find_unused_parameters=False"
    printed = launch(*command.split(), *script.split(), config, *options.split(), "--work-dir", work_dir)
    assert "4 images a step (2 processes)" in printed
    return work_dir


def test_the_launch_command_trains_in_both_processes(trained: Path) -> None:
    assert sorted(losses(trained)) == list(range(1, STEPS + 1))
    assert read_checkpoint(trained / f"iter_{STEPS}.pth")["data"]["consumed"] == [2 * STEPS, 2 * STEPS]
    assert scores(trained)["iteration"] == STEPS
    assert max(scores(trained)[f"{task}/mAP50"] for task in "ab") > 0


def test_resume_equals_the_whole_run(config: Path, trained: Path, tmp_path: Path) -> None:
    work_dir = begin(tmp_path / "run", trained / f"iter_{STOP}.pth")
    wrapper = tmp_path / "train.py"
    wrapper.write_text(WRAPPER)
    arguments = [SCRIPTS["detection"], config, "--device", "cpu", "--work-dir", work_dir, "--resume"]
    for process in start_ranks(wrapper, [str(part) for part in arguments], tmp_path, 2):
        assert process.wait(2 * PATIENCE) == 0, process.text()
    assert losses(work_dir) == {step: loss for step, loss in losses(trained).items() if step > STOP}
    ours, theirs = (read_checkpoint(run / f"iter_{STEPS}.pth")["state_dict"] for run in (work_dir, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert scores(work_dir) == scores(trained)
    seen = [(tmp_path / f"names_{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [len(steps) for steps in seen] == [STEPS - STOP, STEPS - STOP]
    assert all(not {*one.split()} & {*other.split()} for one, other in zip(*seen, strict=True))


def test_one_process_gives_the_same_scores(config: Path, trained: Path, tmp_path: Path) -> None:
    work_dir = begin(tmp_path / "run", trained / f"iter_{STEPS}.pth")
    arguments = [str(config), "--device", "cpu", "--work-dir", str(work_dir), "--resume"]
    assert entry_script().main(arguments) == 0
    assert "resuming with 1 processes a run that had 2" in (work_dir / "train.log").read_text()
    assert scores(work_dir) == scores(trained)
