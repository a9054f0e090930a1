"""Runs that are killed, stopped by a signal, or stopped because their loss is not a number."""

import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from s5.checkpoints.reading import read_checkpoint
from s5.segmentation.methods.fixmatch import FixMatch
from s5.training.guarded_step import StepReport
from s5.training.hooks import NonFiniteLossError, SafetyHook
from s5.training.hooks import safety as safety_module
from tests.helpers.processes import Process, run_here, start, wait_until
from tests.helpers.s4p_runs import arguments, losses, write_dataset

STEPS = 10
OPTIONS = {
    "data.crop": 32,
    "schedule.total_iters": STEPS,
    "schedule.val_interval": STEPS,
    "schedule.keep_checkpoints": STEPS,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def train(root: Path, work_dir: Path, *extra: str, **changes: object) -> Process:
    return start("train", arguments(root, work_dir, *extra, **OPTIONS, **changes), work_dir.parent)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of an uninterrupted run."""
    work_dir = tmp_path_factory.mktemp("whole") / "run"
    process = train(root, work_dir)
    assert process.wait() == 0, process.text()
    assert sorted(losses(work_dir)) == list(range(1, STEPS + 1))
    return work_dir


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    assert losses(ours) == losses(theirs)
    a, b = (read_checkpoint(run / "vit_t_s4p_upernet.pth")["state_dict"] for run in (ours, theirs))
    assert all(torch.equal(a[name], b[name]) for name in b)
    a, b = (json.loads((run / "final_metrics.json").read_text()) for run in (ours, theirs))
    assert a == b


def steps_logged(work_dir: Path) -> int:
    return max(losses(work_dir), default=0) if (work_dir / "log.jsonl").exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume_equals_the_whole_run(root: Path, whole: Path, tmp_path: Path, workers: int) -> None:
    work_dir = tmp_path / "run"
    process = train(root, work_dir, **{"data.workers": workers})
    wait_until((work_dir / "iter_2.pth").exists, process)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (work_dir / ".iter_6.pth.tmp").write_bytes(b"half a checkpoint")
    resumed = train(root, work_dir, "--resume", **{"data.workers": workers})
    assert resumed.wait() == 0, resumed.text()
    assert "resumed from" in resumed.text() and "WARNING" not in resumed.text()
    assert "Traceback" not in resumed.text()
    assert_equal_runs(work_dir, whole)
    assert not list(work_dir.glob("**/.*"))
    wait_until(process.is_gone, process)  # loader workers notice the death of their parent


@pytest.mark.slow
def test_kills_at_random_moments(root: Path, whole: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    rng = random.Random(os.urandom(8))
    kills = 0
    while True:
        process = train(root, work_dir, *(["--resume"] if kills else []))
        time.sleep(rng.uniform(0.1, 0.4) * (1.5 + kills))  # ever later: at last one run comes to its end
        if process.poll() is not None:
            break
        process.send(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait() == 0, process.text()
    assert kills
    assert_equal_runs(work_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize(("workers", "group"), [(0, False), (2, True)])
def test_signal_saves_and_leaves_in_order(
    root: Path, whole: Path, tmp_path: Path, number: signal.Signals, workers: int, group: bool
) -> None:
    work_dir = tmp_path / "run"
    changes = {"data.workers": workers, "schedule.checkpoint_interval": 100}
    process = train(root, work_dir, **changes)
    wait_until(lambda: steps_logged(work_dir) >= 2, process)
    process.send(number, group)
    assert process.wait(30) == 128 + number, process.text()
    done = steps_logged(work_dir)
    assert done < STEPS
    assert [path.name for path in work_dir.glob("iter_*.pth")] == [f"iter_{done}.pth"]
    log = (work_dir / "train.log").read_text()
    assert f"{number.name}: finishing this step or validation, then saving" in log
    assert f"stopped by {number.name} at iteration {done}; continue with --resume" in log
    assert "Traceback" not in process.text()
    wait_until(process.is_gone, process, 15)
    resumed = train(root, work_dir, "--resume", **changes)
    assert resumed.wait() == 0, resumed.text()
    assert_equal_runs(work_dir, whole)


def test_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the one that torchrun forwards a moment after the terminal sent it."""
    clock = iter([100.0, 100.5, 102.9, 103.5])
    monkeypatch.setattr(safety_module.time, "monotonic", lambda: next(clock))
    hook = SafetyHook()
    for _ in range(3):
        hook._on_signal(signal.SIGINT, None)
    assert hook.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        hook._on_signal(signal.SIGINT, None)


def break_loss(monkeypatch: pytest.MonkeyPatch, at_step: int, breaking: object) -> None:
    """Let ``breaking`` change the losses of one step."""
    original, steps = FixMatch.loss, iter(range(1, 100))

    def loss(self: FixMatch, *args: Tensor, **batch: object) -> dict[str, Tensor]:
        losses = original(self, *args, **batch)
        return breaking(self, losses) if next(steps) == at_step else losses

    monkeypatch.setattr(FixMatch, "loss", loss)


def infinite(model: FixMatch, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return losses | {"loss": losses["loss"] * torch.inf}


def finite_with_nan_gradient(model: FixMatch, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    zero = (model.segmentor.backbone.pos_embed * 0).sum()
    return losses | {"loss": losses["loss"] + zero.sqrt()}


@pytest.mark.parametrize(("breaking", "step"), [(infinite, 4), (finite_with_nan_gradient, 4), (infinite, 1)])
def test_too_many_skipped_steps_stop_before_anything_is_saved(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaking: object, step: int
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    break_loss(monkeypatch, step, breaking)
    work_dir = tmp_path / "run"
    last = str(work_dir / "iter_2.pth") if step > 2 else "none yet"
    with pytest.raises(
        NonFiniteLossError, match=rf"iteration {step}\b[\s\S]*[Ll]ast good checkpoint: {last}"
    ):
        run_here("train", arguments(root, work_dir, **OPTIONS, **{"schedule.max_skipped_in_a_row": 1}))
    assert [path.name for path in work_dir.glob("iter_*.pth")] == (["iter_2.pth"] if step > 2 else [])
    if step > 2:
        assert read_checkpoint(work_dir / "vit_t_s4p_upernet.pth")["meta"]["iteration"] == 2
    log = (work_dir / "train.log").read_text()
    assert "samples: labeled/labeled/images/" in log and "unlabeled/pool/images/" in log
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_fp16_that_skips_every_step_stops(tmp_path: Path) -> None:
    """Loss and weights stay finite then, but the scale of the loss keeps falling."""

    def step(scale: float) -> None:
        report = StepReport(torch.tensor([0.0, 0.0, 0.0, 1.5, scale]))
        wrapper = SimpleNamespace(report=report)
        runner = SimpleNamespace(optim_wrapper=wrapper, rank=0, iter=9, work_dir=tmp_path)
        SafetyHook().after_train_iter(runner, 0, {"names": ["a"]}, {})

    step(1.0)
    with pytest.raises(NonFiniteLossError, match="gradients or weights at iteration 10; .* bf16 or fp32"):
        step(2.0**-24)


def test_huge_learning_rate_ends_in_that_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        changes = OPTIONS | {"optim.lr": 1e30, "schedule.max_skipped_in_a_row": 3}
        run_here("train", arguments(root, tmp_path / "run", **changes))
