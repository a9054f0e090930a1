"""Warnings of pseudo-labels that collapse: once at the onset, once at the end, also across a resume."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from s5.checkpoints.reading import read_checkpoint
from s5.segmentation.hooks import CollapseWatch
from tests.helpers.processes import run_here
from tests.helpers.s4p_runs import CLASSES, arguments, records, write_dataset

OPTIONS = {
    "data.crop": 32,
    "schedule.total_iters": 6,
    "schedule.val_interval": 6,
    "schedule.keep_checkpoints": 9,
    "schedule.log_interval": 2,
}
EVEN = [100, 100, 100]


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= level]
    caplog.clear()
    return found


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> CollapseWatch:
    caplog.set_level(logging.INFO)
    return CollapseWatch(["field", "water", "roof"], share=0.95, missing_steps=100)


def test_one_class_that_takes_over_is_said_at_onset_and_end(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.report([95, 3, 2], EVEN, 50)
    assert messages(caplog, logging.INFO) == [], "exactly the limit"
    watch.report([2, 960, 38], [100, 100, 200], 50)
    (text,) = messages(caplog)
    assert text.startswith(
        "pseudo-labels collapse: water has 96.0 % of the confident pixels of the last 50 steps, and "
        "25.0 % of the labeled ones (fixmatch.collapse.share = 0.95)"
    )
    watch.report([1, 1000, 1], EVEN, 50)
    watch.report([0, 0, 0], EVEN, 10)  # tells nothing
    assert messages(caplog, logging.INFO) == []
    watch.report([1, 1, 1000], EVEN, 50)
    assert "collapse: roof has" in messages(caplog)[0], "another class is another collapse"
    watch.report([40, 50, 10], EVEN, 50)
    assert messages(caplog) == []
    watch.report([1, 1, 1000], EVEN, 50)
    assert len(messages(caplog)) == 1


def test_the_end_is_said(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    watch.report([1, 1000, 1], EVEN, 50)
    messages(caplog)
    watch.report([40, 50, 10], EVEN, 50)
    expected = "pseudo-labels: the collapse is over, water has 50.0 % of the confident pixels"
    assert messages(caplog, logging.INFO) == [expected]


def test_a_labeled_class_without_confident_pixels_is_missing(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Roofs are labeled from the third report on; field keeps up; water never had a label."""
    for labeled in ([10, 0, 0], [10, 0, 0], [10, 0, 5], [10, 0, 0], [10, 0, 0]):
        watch.report([5, 5, 0] if labeled[2] else [6, 4, 0], labeled, 30)
        assert messages(caplog, logging.INFO) == []
    watch.report([5, 0, 0], [10, 0, 0], 30)
    text = messages(caplog)[-1]
    assert text.startswith(
        "pseudo-labels: no confident pixel of roof in the last 120 steps, although it occurs in the labels "
        "(fixmatch.collapse.missing_steps = 100)"
    )
    assert watch.missing == {2}
    for _ in range(9):
        watch.report([5, 5, 0], [10, 0, 0], 30)
    assert messages(caplog) == [], "while it lasts, and water has no labels"
    watch.report([5, 5, 1], [10, 0, 0], 30)
    assert messages(caplog, logging.INFO) == ["pseudo-labels: there are confident pixels of roof again"]
    assert watch.missing == set()


def test_classes_that_go_missing_together_share_a_warning(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        watch.report([0, 0, 0], EVEN, 50)
    (text,) = messages(caplog)
    assert "no confident pixel of field, water, roof in the last 100 steps" in text


def test_a_lone_class_cannot_collapse(caplog: pytest.LogCaptureFixture) -> None:
    CollapseWatch(["roof"]).report([100], [100], 50)
    assert messages(caplog) == []


def test_state_is_restored(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    watch.report([1000, 1, 0], EVEN, 60)
    messages(caplog)
    again = CollapseWatch(watch.classes, missing_steps=100)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    again.report([1000, 1, 0], [0, 0, 0], 60)
    (text,) = messages(caplog)
    assert "no confident pixel of roof in the last 120 steps" in text


# Runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def train(root: Path, work_dir: Path, *extra: str, **changes: object) -> tuple[list[str], list[dict]]:
    """Warnings of pseudo-labels in the log, and the records of their scalars."""
    assert run_here("train", arguments(root, work_dir, *extra, **OPTIONS | changes)) == 0
    lines = (work_dir / "train.log").read_text().splitlines()
    warnings = [line for line in lines if "WARNING - pseudo-labels" in line]
    return warnings, [r for r in records(work_dir) if "pseudo_collapse/missing_classes" in r]


@pytest.mark.slow
def test_a_run_says_what_collapses(root: Path, tmp_path: Path) -> None:
    """An untrained network assigns most pixels to one class."""
    options = {"fixmatch.conf_thresh": 0.0, "fixmatch.collapse.share": 0.4}
    warnings, scalars = train(root, tmp_path / "run", **options)
    assert len(warnings) == 1
    assert "of the confident pixels of the last 2 steps" in warnings[0]
    assert [r["step"] for r in scalars] == [2, 4, 6]
    for record in scalars:
        largest = max(record[f"pseudo/{name}"] for name in CLASSES)
        assert record["pseudo_collapse/largest_share"] == largest > 0.4
        assert record["pseudo_collapse/missing_classes"] == 0


@pytest.mark.slow
def test_a_run_without_confident_pixels_says_so(root: Path, tmp_path: Path) -> None:
    options = {"fixmatch.conf_thresh": 1.0, "fixmatch.collapse.missing_steps": 3}
    warnings, scalars = train(root, tmp_path / "run", **options)
    assert len(warnings) == 1
    assert "no confident pixel of ground, water, roof in the last 4 steps" in warnings[0]
    assert [r["pseudo_collapse/missing_classes"] for r in scalars] == [0, 3, 3]
    assert not any("pseudo_collapse/largest_share" in r for r in scalars)


@pytest.mark.slow
def test_resumed_runs_count_and_warn_like_whole_ones(root: Path, tmp_path: Path) -> None:
    """In the middle of a window, before and after the onset; the warning is not repeated."""
    changes = {"fixmatch.conf_thresh": 0.0, "fixmatch.collapse.share": 0.4, "schedule.log_interval": 3}
    warnings, scalars = train(root, tmp_path / "whole", **changes)
    assert len(warnings) == 1 and [r["step"] for r in scalars] == [3, 6]
    for step, count in ((2, 1), (4, 0)):
        run = tmp_path / f"from_{step}"
        run.mkdir()
        shutil.copy(tmp_path / f"whole/iter_{step}.pth", run)
        again, resumed = train(root, run, "--resume", **changes)
        assert len(again) == count
        assert resumed == [r for r in scalars if r["step"] > step]
        ours, theirs = (read_checkpoint(folder / "iter_6.pth") for folder in (run, tmp_path / "whole"))
        assert ours["pseudo_labels"] == theirs["pseudo_labels"]
