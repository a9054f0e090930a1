"""Experiments: the order of hooks, methods by name, and scalars that a method adds to the log."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s5.errors import ConfigError
from s5.segmentation.methods import METHODS
from s5.segmentation.methods.fixmatch import FixMatch
from s5.training import hooks
from s5.training.runner import S5Runner
from tests.helpers.mdf_runs import arguments as mdf_arguments
from tests.helpers.mdf_runs import script as mdf_script
from tests.helpers.mdf_runs import write_datasets
from tests.helpers.s4p_runs import arguments, records, script, write_dataset

NAMES = re.findall(r"^[A-Z_]+ +(\w+Hook) ", hooks.__doc__ or "", re.MULTILINE)
OF_A_TREE = {"TaskStartHook", "PseudoLabelHook", "ViewsHook"}


class Hesitant(FixMatch):
    """Trains on no pixel, and logs two numbers of its own."""

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        return torch.zeros_like(pseudo, dtype=torch.bool)

    def loss(self, *args, **batch) -> dict:
        losses = super().loss(*args, **batch)
        return {**losses, "patience": losses["loss_s"] * 2, "steps": 1.5, "by_class": torch.zeros(3)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


@pytest.fixture
def hooks_of_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with the names of the hooks of a run, which ends before its first step."""
    names: list[str] = []
    monkeypatch.setattr(
        S5Runner, "train", lambda runner: names.extend(type(h).__name__ for h in runner.hooks)
    )
    return names


def test_the_documented_order_is_that_of_s4p(root: Path, tmp_path: Path, hooks_of_run: list[str]) -> None:
    assert script().main(arguments(root, tmp_path / "run")) == 0
    ours = [name for name in hooks_of_run if name != "DistSamplerSeedHook"]  # ours need no epoch
    assert ours == [name for name in NAMES if name != "TaskStartHook"]


def test_the_documented_order_is_that_of_fine_tuning(tmp_path: Path, hooks_of_run: list[str]) -> None:
    root = write_datasets(tmp_path / "data")
    assert mdf_script().main(mdf_arguments(root, tmp_path / "run")) == 0
    ours = [name for name in hooks_of_run if name != "DistSamplerSeedHook"]
    assert ours == [name for name in NAMES if name not in OF_A_TREE - {"TaskStartHook"}]


def test_a_method_is_a_class_and_a_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "hesitant", Hesitant)
    changes = {"method": "hesitant", "schedule.total_iters": 2, "schedule.log_interval": 2}
    assert script().main(arguments(root, tmp_path / "run", **changes)) == 0
    log = next(record for record in records(tmp_path / "run") if "loss" in record)
    assert (log["loss_u"], log["confident"], log["steps"]) == (0, 0, 1.5)
    assert log["patience"] == pytest.approx(2 * log["loss_s"])  # a mean over both steps, as that of the loss
    assert "by_class" not in log


def test_unknown_method(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method = 'unimatch': must be one of fixmatch"):
        script().main(arguments(root, tmp_path / "run", method="unimatch"))
