"""Runs with steps whose loss or gradients are not finite: what is kept, logged, counted and resumed."""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import IterBasedTrainLoop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s5.checkpoints.reading import read_checkpoint
from s5.detection.network import DetectionModel
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.multi_dataset import MultiDataset
from s5.training.guarded_step import SkippedSteps, StepReport
from s5.training.hooks import NonFiniteLossError, SafetyHook
from tests.helpers import det_runs, mdf_runs
from tests.helpers.processes import run_here
from tests.helpers.s4p_runs import arguments, records, write_dataset

OPTIONS = {
    "data.crop": 32,
    "schedule.total_iters": 6,
    "schedule.val_interval": 6,
    "schedule.checkpoint_interval": 1,
    "schedule.keep_checkpoints": 9,
    "optim.lr": 1e-3,
    "fixmatch.pseudo_labels": "ema",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def break_steps(
    monkeypatch: pytest.MonkeyPatch, model: type, method: str, faulty: Collection[int], first: int = 1
) -> None:
    """Let the loss of some steps be NaN; ``first`` is the number of the first step that will be made."""
    original, steps = getattr(model, method), iter(range(first, 1000))

    def losses(self: object, *args: object, **batch: object) -> dict[str, Tensor]:
        found = original(self, *args, **batch)
        return found | {"loss": found["loss"] * torch.nan} if next(steps) in faulty else found

    monkeypatch.setattr(model, method, losses)


def train(
    root: Path,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    faulty: Collection[int],
    *extra: str,
    first: int = 1,
    **changes: object,
) -> None:
    with monkeypatch.context() as patch:
        break_steps(patch, FixMatch, "loss", faulty, first)
        assert run_here("train", arguments(root, work_dir, *extra, **OPTIONS | changes)) == 0


def trained_state(path: Path) -> dict[str, Tensor]:
    """Weights, statistics, teacher and optimizer state in a checkpoint."""
    checkpoint = read_checkpoint(path)
    tensors = dict(checkpoint["state_dict"])
    for i, state in checkpoint["optimizer"]["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
    assert all(value.isfinite().all() for value in tensors.values())
    return tensors


def differing(ours: Path, theirs: Path) -> list[str]:
    a, b = trained_state(ours), trained_state(theirs)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def losses_and_counts(work_dir: Path) -> dict[int, tuple]:
    return {r["step"]: (r["loss"], r["loss_s"], r["skipped_steps"]) for r in records(work_dir) if "loss" in r}


@pytest.fixture(scope="module")
def skipped(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a run whose steps 3 and 5 are skipped."""
    work_dir = tmp_path_factory.mktemp("runs") / "skipped"
    with pytest.MonkeyPatch.context() as patch:
        train(root, work_dir, patch, {3, 5})
    return work_dir


@pytest.mark.slow
def test_skipped_steps_change_nothing_but_the_learning_rate(skipped: Path) -> None:
    paths = [skipped / f"iter_{step}.pth" for step in range(1, 7)]
    same = [differing(a, b) == [] for a, b in zip(paths, paths[1:], strict=False)]
    assert same == [False, True, False, True, False]
    rates = [r["base_lr"] for r in records(skipped) if "base_lr" in r]
    assert rates == sorted(set(rates), reverse=True), "the schedule goes by steps"


def test_skipped_steps_are_logged_with_their_samples_and_counted(skipped: Path) -> None:
    log = (skipped / "train.log").read_text()
    found = re.findall(
        r"WARNING - skipped iteration (\d), rank 0: loss nan, samples: labeled/.*unlabeled/", log
    )
    assert found == ["3", "5"]
    assert "ERROR" not in log
    found = losses_and_counts(skipped)
    assert [count for _, _, count in found.values()] == [0, 0, 1, 1, 2, 2]
    assert [step for step, (loss, *_) in found.items() if loss is None] == [3, 5]
    assert found[3][1] > 0, "what is finite is logged"
    events = EventAccumulator(str(skipped / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("skipped_steps")] == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_mean_losses_leave_skipped_steps_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = {"schedule.checkpoint_interval": 6}
    train(root, tmp_path / "one", monkeypatch, {2}, **rarely)
    train(root, tmp_path / "mean", monkeypatch, {2}, **rarely, **{"schedule.log_interval": 3})
    single = [loss for loss, *_ in losses_and_counts(tmp_path / "one").values()]
    means = [loss for loss, *_ in losses_and_counts(tmp_path / "mean").values()]
    expected = [(single[0] + single[2]) / 2, sum(single[3:]) / 3]
    assert means == [pytest.approx(mean, rel=1e-12) for mean in expected]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4])
def test_resume_after_skipped_steps_equals_the_whole_run(
    root: Path, skipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before, right after, and some steps after a skipped one."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / f"iter_{step}.pth").write_bytes((skipped / f"iter_{step}.pth").read_bytes())
    train(root, work_dir, monkeypatch, {3, 5}, "--resume", first=step + 1)
    whole = losses_and_counts(skipped)
    assert losses_and_counts(work_dir) == {i: whole[i] for i in range(step + 1, 7)}
    for i in range(step + 1, 7):
        assert differing(work_dir / f"iter_{i}.pth", skipped / f"iter_{i}.pth") == []
    ours, theirs = (read_checkpoint(run / "iter_6.pth") for run in (work_dir, skipped))
    assert ours["skipped_steps"] == theirs["skipped_steps"] == {"total": 2, "in_a_row": 0, "recent": [3, 5]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "last", "why"),
    [
        (
            {"schedule.max_skipped_in_a_row": 3},
            5,
            "3 steps in a row were skipped (schedule.max_skipped_in_a_row = 3)",
        ),
        (
            {"schedule.max_skipped_share": 0.001},
            4,
            "2 of the last 1000 steps were skipped (schedule.max_skipped_share",
        ),
    ],
    ids=["in_a_row", "share"],
)
def test_too_many_end_the_run_also_across_a_resume(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, last: int, why: str
) -> None:
    work_dir, faulty = tmp_path / "run", {3, 4, 5}
    pattern = (
        rf"non-finite loss, gradients or weights at iteration {last}; the log names the samples. "
        rf"{re.escape(why)}.* Last good checkpoint: \S+iter_{last - 1}.pth. Check the samples, lower the "
    )
    with pytest.raises(NonFiniteLossError, match=pattern):
        train(root, work_dir, monkeypatch, faulty, **changes)
    assert not (work_dir / f"iter_{last}.pth").exists()
    for path in work_dir.glob("iter_*.pth"):
        if path.name != "iter_3.pth":
            path.unlink()
    with pytest.raises(NonFiniteLossError, match=pattern):
        train(root, work_dir, monkeypatch, faulty, "--resume", first=4, **changes)


@pytest.mark.slow
def test_fine_tuning_skips_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_steps(monkeypatch, MultiDataset, "loss", {2})
    root = mdf_runs.write_datasets(tmp_path / "data")
    changes = {"schedule.steps_per_epoch": 1, "schedule.epochs": 3, "schedule.val_interval": 3}
    assert mdf_runs.script().main(mdf_runs.arguments(root, tmp_path / "run", **changes)) == 0
    check_skipped_second(tmp_path / "run")


@pytest.mark.slow
def test_detection_skips_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_steps(monkeypatch, DetectionModel, "_total", {2})
    config = det_runs.write_config(det_runs.write_datasets(tmp_path / "data"))
    assert det_runs.script().main([str(config), "--device", "cpu", "--work-dir", str(tmp_path / "run")]) == 0
    check_skipped_second(tmp_path / "run")


def check_skipped_second(work_dir: Path) -> None:
    paths = [work_dir / f"iter_{step}.pth" for step in (1, 2, 3)]
    assert differing(*paths[:2]) == [] and differing(*paths[1:])
    assert re.search(
        r"skipped iteration 2, rank 0: loss nan, samples: \S+", (work_dir / "train.log").read_text()
    )
    assert [r["skipped_steps"] for r in records(work_dir) if "loss" in r] == [0, 1, 1]


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_have_no_counts(
    root: Path, skipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    checkpoint = torch.load(skipped / "iter_4.pth", weights_only=False)
    del checkpoint["skipped_steps"], checkpoint["pseudo_labels"]
    torch.save(checkpoint, tmp_path / "run/iter_4.pth")
    train(root, tmp_path / "run", monkeypatch, {5}, "--resume", first=5)
    assert differing(tmp_path / "run/iter_6.pth", skipped / "iter_6.pth") == []
    assert read_checkpoint(tmp_path / "run/iter_6.pth")["skipped_steps"]["total"] == 1


# Counting


def test_limits() -> None:
    counter = SkippedSteps()
    assert [counter.count(i, True) is None for i in range(1, 11)] == [True] * 9 + [False]
    counter = SkippedSteps(max_in_a_row=2)
    assert [counter.count(i, i % 2 == 0) for i in range(1, 21)] == [None] * 20, "ten are 1 % of 1000"
    assert counter.count(21, False) is None
    assert counter.count(22, True).startswith("11 of the last 1000 steps were skipped")
    counter = SkippedSteps()
    assert [counter.count(i, i % 100 == 0) for i in range(1, 5001)] == [None] * 5000
    assert (counter.total, counter.in_a_row, counter.recent) == (50, 1, list(range(4100, 5001, 100)))
    again = SkippedSteps()
    again.load_state_dict(json.loads(json.dumps(counter.state_dict())))
    assert again == counter
    assert SkippedSteps(max_share=0.0).count(1, True) is not None
    assert SkippedSteps(max_in_a_row=1).count(1, True) is not None


# What the host reads, and when


class Report(StepReport):
    """Records when it is read."""

    def __init__(self, step: int, read: list[int], **values: float) -> None:
        names = ("fault", "stop", "own_fault", "loss", "scale")
        filled = {"loss": float(step), "scale": 1.0} | values
        super().__init__(torch.tensor([filled.get(name, 0.0) for name in names]))
        self.step, self.log = step, read

    def read(self) -> tuple:
        self.log.append(self.step)
        return super().read()


def steps_of(hook: SafetyHook, reports: list[StepReport]) -> tuple[SimpleNamespace, Callable[[int], None]]:
    """A runner, and a function that makes a step of it."""
    hub = SimpleNamespace(update_scalar=lambda *_: None)
    runner = SimpleNamespace(rank=0, iter=0, message_hub=hub, train_loop=SimpleNamespace(stop_training=False))

    def step(number: int) -> None:
        runner.iter = number - 1
        runner.optim_wrapper = SimpleNamespace(report=reports[number - 1])
        hook.after_train_iter(runner, number - 1, {"names": [f"image{number}"]}, {})

    return runner, step


def test_on_a_gpu_outcomes_are_read_a_step_late(caplog: pytest.LogCaptureFixture) -> None:
    read: list[int] = []
    hook = SafetyHook(delay=1)
    reports = [Report(i, read, fault=float(i == 2), own_fault=float(i == 2)) for i in range(1, 4)]
    runner, step = steps_of(hook, reports)
    step(1)
    assert read == []
    step(2)
    assert read == [1] and hook.loss == 1.0 and not caplog.records
    step(3)
    assert read == [1, 2] and hook.skipped.total == 1
    assert "skipped iteration 2, rank 0: running statistics not finite, samples: image2" in caplog.text
    hook.after_train(runner)
    assert read == [1, 2, 3]


def test_a_signal_takes_effect_where_a_checkpoint_can_still_be_written() -> None:
    """Not in the validation after the step in which it came."""
    hook, read = SafetyHook(delay=1), []
    runner, step = steps_of(hook, [Report(i, read, stop=15.0) for i in range(1, 3)])
    runner.model = torch.nn.Linear(1, 1)
    step(1)
    hook.before_val(runner)
    assert read == [1] and not runner.train_loop.stop_training
    step(2)
    assert runner.train_loop.stop_training and hook.stopped_by == 15


class Reads(TorchDispatchMode):
    """Records the operators that would synchronise the device."""

    names = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name = func.overloadpacket.__name__
        if name in self.names:
            self.found.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.slow
def test_steps_between_log_lines_read_nothing_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all hooks; the outcome of a step and the values of a log line are copied whole.

    Photometric changes read their parameters on a CPU, and only there.
    """
    monkeypatch.setattr("s5.segmentation.methods.fixmatch.apply_photometric", lambda images, *_: images)
    original, found = IterBasedTrainLoop.run_iter, []

    def run_iter(self: IterBasedTrainLoop, data_batch: dict) -> None:
        with Reads() as reads:
            original(self, data_batch)
        found.append(reads.found)

    monkeypatch.setattr(IterBasedTrainLoop, "run_iter", run_iter)
    changes = {"schedule.checkpoint_interval": 6, "schedule.log_interval": 4, "optim.clip_grad": 1.0}
    train(root, tmp_path / "run", monkeypatch, {2}, **changes)
    assert [names for i, names in enumerate(found, 1) if i != 6] == [[]] * 5
    assert found[5], "a checkpoint is not written without"
