"""Runs of several processes on the CPU: scores, resuming, and errors that end all of them."""

import json
import re
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from s5.checkpoints.reading import read_checkpoint
from tests.helpers.processes import (
    PATIENCE,
    SCRIPTS,
    STOPPED,
    Process,
    free_port,
    run_here,
    start_ranks,
    wait_until,
)
from tests.helpers.s4p_runs import arguments, losses, options, start, write_dataset

pytestmark = pytest.mark.slow

TRAIN = str(SCRIPTS["train"])
OPTIONS = {
    "data.crop": 32,
    "data.labeled.batch_size": 1,
    "data.unlabeled.batch_size": 2,
    "schedule.total_iters": 4,
    "schedule.val_interval": 4,
    "schedule.keep_checkpoints": 4,
    "optim.lr": 0.01,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def train(root: Path, work_dir: Path, *extra: str, processes: int = 2, **changes: object) -> list[Process]:
    return start_ranks(
        "train", arguments(root, work_dir, *extra, **OPTIONS | changes), work_dir.parent, processes
    )


def scores(work_dir: Path) -> dict[str, float]:
    return json.loads((work_dir / "final_metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "trained"
    for process in train(root, work_dir):
        assert process.wait() == 0, process.text()
    return work_dir


def test_one_process_writes_and_speaks_for_all(trained: Path) -> None:
    outputs = sorted(trained.parent.glob("output_*"))
    assert "2 processes" in outputs[0].read_text()
    assert "INFO" not in outputs[1].read_text()
    assert sorted(losses(trained)) == [1, 2, 3, 4]
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert len([record for record in records if "loss" in record]) == 4


@pytest.mark.parametrize(("processes", "images"), [(2, 3), (3, 2)])
def test_scores_do_not_depend_on_the_number_of_processes(
    root: Path, trained: Path, tmp_path: Path, processes: int, images: int
) -> None:
    """With an odd number of images, and with a process that has none."""
    lines = (root / "splits/val.txt").read_text().splitlines()[:images]
    (tmp_path / "val.txt").write_text("\n".join(lines))
    changes = {"data.val.split": tmp_path / "val.txt"}
    args = [str(trained / "vit_t_s4p_upernet.pth"), "--backbone", "vit_t", "--device", "cpu", "--work-dir"]
    assert run_here("evaluate", [*args, str(tmp_path / "one"), *options(root, **changes)]) == 0
    ranks = start_ranks(
        "evaluate", [*args, str(tmp_path / "all"), *options(root, **changes)], tmp_path, processes
    )
    for process in ranks:
        assert process.wait() == 0, process.text()
    assert scores(tmp_path / "all") == scores(tmp_path / "one")
    assert scores(tmp_path / "one")["aAcc"] > 0


def test_validation_in_training_scores_the_saved_weights(root: Path, tmp_path: Path) -> None:
    """Also when a step leaves the processes with different statistics in their batch norms."""
    wrapper = tmp_path / "train_apart.py"
    wrapper.write_text(
        "import os, runpy, sys\n"
        "from s5.segmentation.methods.fixmatch import FixMatch\n"
        "def after_step(self, skipped):\n"
        "    for name, buffer in self.named_buffers():\n"
        "        if name.endswith('running_mean'):\n"
        "            buffer += int(os.environ['RANK'])\n"
        "FixMatch.after_step = after_step\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    work_dir = tmp_path / "run"
    for process in start_ranks(wrapper, [TRAIN, *arguments(root, work_dir, **OPTIONS)], tmp_path, 2):
        assert process.wait() == 0, process.text()
    args = [str(work_dir / "vit_t_s4p_upernet.pth"), "--backbone", "vit_t", "--device", "cpu", "--work-dir"]
    assert run_here("evaluate", [*args, str(tmp_path / "evaluation"), *options(root, **OPTIONS)]) == 0
    assert scores(tmp_path / "evaluation") | {"iteration": 4} == scores(work_dir)


def test_resume_after_kill_equals_the_whole_run(root: Path, trained: Path, tmp_path: Path) -> None:
    ranks = train(root, tmp_path / "run")
    wait_until((tmp_path / "run/iter_2.pth").exists, ranks[0])
    for process in ranks:
        process.send(signal.SIGKILL)
        process.wait()
    for process in train(root, tmp_path / "run", "--resume"):
        assert process.wait() == 0, process.text()
    assert losses(tmp_path / "run") == losses(trained)
    ours, theirs = (read_checkpoint(run / "iter_4.pth")["state_dict"] for run in (tmp_path / "run", trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resume_with_another_number_of_processes(root: Path, trained: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_2.pth").write_bytes((trained / "iter_2.pth").read_bytes())
    assert read_checkpoint(work_dir / "iter_2.pth")["data"]["consumed"] == [4, 8]
    assert run_here("train", arguments(root, work_dir, "--resume", **OPTIONS)) == 0
    log = (work_dir / "train.log").read_text()
    assert "resuming with 1 processes a run that had 2: its sources continue at image [4, 8]" in log
    assert "a global batch now has 3 images" in log
    assert sorted(losses(work_dir)) == [3, 4]
    assert read_checkpoint(work_dir / "iter_4.pth")["data"]["consumed"] == [4 + 2, 8 + 4]


def test_lost_process_ends_the_others(root: Path, tmp_path: Path) -> None:
    ranks = train(root, tmp_path / "run", **{"schedule.total_iters": 1000})
    wait_until((tmp_path / "run/iter_2.pth").exists, ranks[0])
    ranks[1].send(signal.SIGKILL)
    assert ranks[0].wait(30) not in (0, None)
    assert "onnection" in ranks[0].text()


def test_error_of_the_main_process_ends_the_others(root: Path, tmp_path: Path) -> None:
    """The labeled data is checked by the main process, while the others wait for it."""
    bad = np.full((72, 80), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "bad.png"), bad)
    (tmp_path / "labeled.txt").write_text(f"labeled/labeled/images/000.png {tmp_path / 'bad.png'}\n" * 4)
    ranks = train(root, tmp_path / "run", **{"data.labeled.split": tmp_path / "labeled.txt"})
    assert [process.wait(30) for process in ranks] == [1, 1]
    assert re.search(r"error: .*labeled.txt: 4 errors[\s\S]*bad.png: value 7", ranks[0].text())
    assert re.search(STOPPED, ranks[1].text())
    assert not any("Traceback" in process.text() for process in ranks)


def test_loss_not_finite_in_one_process_stops_all_at_the_limit(root: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "train_nan.py"
    wrapper.write_text(
        "import os, runpy, sys, torch\n"
        "from s5.segmentation.methods.fixmatch import FixMatch\n"
        "original, steps = FixMatch.loss, iter(range(1, 100))\n"
        "def loss(self, *args, **batch):\n"
        "    losses = original(self, *args, **batch)\n"
        "    bad = next(steps) == 3 and os.environ['RANK'] == '1'\n"
        "    return losses | {'loss': losses['loss'] * torch.nan} if bad else losses\n"
        "FixMatch.loss = loss\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    work_dir = tmp_path / "run"
    changes = OPTIONS | {"schedule.max_skipped_in_a_row": 1}
    ranks = start_ranks(wrapper, [TRAIN, *arguments(root, work_dir, **changes)], tmp_path, 2)
    assert [process.wait(30) for process in ranks] == [1, 1]
    for process in ranks:
        assert re.search(r"error: non-finite .*iteration 3;.*checkpoint: \S+iter_2.pth", process.text())
    log = (work_dir / "train.log").read_text()
    assert re.search(r"iteration 3, rank 1: loss nan, samples: labeled/.*unlabeled/", log)
    assert "rank 0: loss" not in log
    assert [path.name for path in work_dir.glob("iter_*.pth")] == ["iter_2.pth"]


def test_torchrun_passes_signals_on(root: Path, tmp_path: Path) -> None:
    """The real launcher: both processes train, and SIGTERM to it saves before they leave."""
    work_dir = tmp_path / "run"
    changes = OPTIONS | {"schedule.total_iters": 200, "schedule.checkpoint_interval": 1000}
    run = start(arguments(root, work_dir, **changes), processes=2, port=free_port())
    try:
        deadline = time.monotonic() + PATIENCE
        while not (work_dir / "log.jsonl").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        output = run.communicate(timeout=PATIENCE)[0]
    finally:
        run.kill()
    assert run.returncode != 0
    assert "stopped by SIGTERM at iteration" in (work_dir / "train.log").read_text(), output
    assert len(list(work_dir.glob("iter_*.pth"))) == 1
