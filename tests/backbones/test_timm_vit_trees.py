"""DINOv3 in all three trees, from satellite weights whose normalisation goes with them to the end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import s5
from s5.backbones import ARCHITECTURES, create_backbone
from s5.backbones.normalization import DINOV3_SAT
from s5.backbones.timm_vit import TIMM_VITS
from s5.checkpoints.reading import read_checkpoint
from s5.errors import ConfigError
from tests.helpers import det_runs, mdf_runs, s4p_runs
from tests.helpers.timm_vits import TINY

ON_CPU = ["--device", "cpu"]
STEPS = {"schedule.total_iters": 2, "schedule.val_interval": 2, "schedule.checkpoint_interval": 1}
SAT = [[*values] for values in DINOV3_SAT]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dinov3_s`, narrow and shallow."""
    row = replace(TIMM_VITS["dinov3_s"], width=32, options=TINY["dinov3"].options)
    monkeypatch.setitem(ARCHITECTURES, "dinov3_s", row)


@pytest.fixture
def satellite(tmp_path: Path) -> Path:
    """Weights in timm's layout, in a file with the name of published satellite weights."""
    body = create_backbone("dinov3_s", 64).get_submodule("body")
    torch.save(body.state_dict(), tmp_path / "dinov3_sat493m.pth")
    return tmp_path / "dinov3_sat493m.pth"


def pre_train(root: Path, run: Path, *extra: str, **changes: object) -> int:
    args = s4p_runs.arguments(root, run, "--backbone", "dinov3_s", *extra, **STEPS, **changes)
    return s4p_runs.script().main(args)


def stored(path: Path) -> object:
    return read_checkpoint(path)["meta"]["normalization"]


def test_pre_training_and_resuming(satellite: Path, tmp_path: Path) -> None:
    root, run = s4p_runs.write_dataset(tmp_path / "data"), tmp_path / "run"
    changes = {
        "model.activation_checkpointing": True,
        "fixmatch.pseudo_labels": "ema",
        "optim.layer_decay": 0.7,
    }
    assert pre_train(root, run, "--init", str(satellite), **changes) == 0
    losses = s4p_runs.losses(run)
    assert len(losses) == 2
    assert stored(run / "dinov3_s_s4p.pth") == stored(run / "dinov3_s_s4p_upernet.pth") == SAT
    resumed = ["--resume", str(run / "iter_1.pth")]
    assert pre_train(root, tmp_path / "resumed", "--init", "none", *resumed, **changes) == 0
    assert s4p_runs.losses(tmp_path / "resumed")[2] == losses[2]
    assert stored(tmp_path / "resumed/dinov3_s_s4p.pth") == SAT
    with pytest.raises(ConfigError, match="the run to resume .* with dinov3_sat, not with imagenet"):
        pre_train(root, tmp_path / "other", *resumed, **changes, **{"model.normalization": "imagenet"})
    weights = str(run / "dinov3_s_s4p_upernet.pth")
    args = [weights, "--config", str(run / "config.yaml"), "--backbone", "dinov3_s", *ON_CPU]
    assert s4p_runs.script("evaluate").main([*args, "--work-dir", str(tmp_path / "scores")]) == 0


def test_a_normalisation_that_is_chosen_stays(satellite: Path, tmp_path: Path) -> None:
    root, run = s4p_runs.write_dataset(tmp_path / "data"), tmp_path / "run"
    own = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    assert pre_train(root, run, "--init", str(satellite), **{"model.normalization": own}) == 0
    assert stored(run / "dinov3_s_s4p.pth") == own
    with pytest.raises(ConfigError, match="model.normalization = 'sentinel': expected imagenet, dinov3_sat"):
        pre_train(root, tmp_path / "other", **{"model.normalization": "sentinel"})


def test_fine_tuning_with_experts(satellite: Path, tmp_path: Path) -> None:
    root, run = mdf_runs.write_datasets(tmp_path / "data"), tmp_path / "run"
    length = {"schedule.epochs": 1, "schedule.val_interval": 1, "schedule.steps_per_epoch": 2}
    more = {"model.expert_channels": 8, "optim.layer_decay": 0.7, "model.activation_checkpointing": True}
    args = mdf_runs.arguments(root, run, "--init", str(satellite), backbone="dinov3_s_moe", **length, **more)
    assert mdf_runs.script().main(args) == 0
    assert len(mdf_runs.losses(run)) == 2
    weights = run / "dinov3_s_moe_mdf.pth"
    assert stored(weights) == SAT
    args = [str(weights), *ON_CPU, "--work-dir", str(tmp_path / "scores")]
    assert mdf_runs.script("evaluate").main(args) == 0
    predictor = s5.load(weights, device="cpu")
    assert predictor.model.normalization == DINOV3_SAT
    args = mdf_runs.arguments(
        root, tmp_path / "again", "--init", str(weights), backbone="dinov3_s_moe", **length
    )
    assert mdf_runs.script().main([*args, *mdf_runs.overrides({"model.expert_channels": 8})]) == 0
    assert stored(tmp_path / "again/dinov3_s_moe_mdf.pth") == SAT


def test_detection(satellite: Path, tmp_path: Path) -> None:
    config, run = det_runs.write_config(det_runs.write_datasets(tmp_path)), tmp_path / "run"
    short = [*det_runs.SHORT]
    options = ["--cfg-options", "backbone=dinov3_s", *short, "optim.layer_decay=0.7"]
    args = [str(config), *ON_CPU, *options, "--init", str(satellite), "--work-dir", str(run)]
    assert det_runs.script().main(args) == 0
    assert len(det_runs.losses(run)) == 2
    assert stored(run / "dinov3_s_det.pth") == SAT
    args = [str(config), str(run / "dinov3_s_det.pth"), *ON_CPU, *options]
    assert det_runs.script("test").main([*args, "--work-dir", str(tmp_path / "scores")]) == 0


def test_files_of_a_backbone_of_timm_have_no_colon(tmp_path: Path) -> None:
    root, run = s4p_runs.write_dataset(tmp_path / "data"), tmp_path / "run"
    args = s4p_runs.arguments(root, run, "--backbone", "timm:test_vit", **STEPS)
    assert s4p_runs.script().main(args) == 0
    weights = run / "timm_test_vit_s4p_upernet.pth"
    assert s5.load(weights, device="cpu").model.network.backbone.name == "timm:test_vit"


@pytest.mark.parametrize(
    ("name", "message"),
    [("dinov4_s", "known backbones.*did you mean 'dinov"), ("dinov3_s_moe", "use dinov3_s")],
)
def test_an_unknown_name_ends_the_command(name: str, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        s4p_runs.script().main(["--backbone", name])
    error = capsys.readouterr().err.replace("\n", " ")
    assert all(part in error for part in message.split(".*"))
