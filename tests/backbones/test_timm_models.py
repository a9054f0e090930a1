"""Backbones of timm: the contract of small ones, and Swin-T in all three trees."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from s5 import params
from s5.backbones import ARCHITECTURES, create_backbone, identify
from s5.backbones.timm_models import TIMM_MODELS
from s5.checkpoints.initial import initialise
from s5.checkpoints.loading import load_weights
from s5.detection.network import build_detector
from s5.errors import CheckpointError, ConfigError
from s5.segmentation.segmentor import build_segmentor
from tests.backbones.contract import BackboneContract, ExpertsContract
from tests.helpers import det_runs, mdf_runs, s4p_runs

SWIN = TIMM_MODELS["swin_t"]
SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 2)}
SMALL_SWIN = replace(SWIN, options={**SWIN.options, **SMALL}, max_expert_channels=128)


class TestSwin(BackboneContract):
    architecture = SMALL_SWIN

    def test_windows_are_whole_and_shifted_whatever_the_size_of_the_image(self) -> None:
        blocks = [block for block in self.build().modules() if hasattr(block, "shift_size")]
        assert [block.window_size for block in blocks] == [(7, 7)] * 5
        assert [block.shift_size for block in blocks] == [(0, 0)] * 3 + [(3, 3), (0, 0)]

    def test_epsilon_of_the_norms(self) -> None:
        norms = [module for module in self.build(norm_eps=0.25).modules() if hasattr(module, "eps")]
        assert norms and {norm.eps for norm in norms} == {0.25}


class TestSwinWithExperts(ExpertsContract):
    architecture = SMALL_SWIN

    def test_experts_have_the_same_share_in_every_stage(self) -> None:
        swin = create_backbone(SMALL_SWIN, 64, experts=("a",), expert_channels=32)
        widths = [stage.blocks[0].mlp.experts["a"].out_features for stage in list(swin.body.children())[1:]]
        assert widths == [4, 8, 16, 32] and swin.expert_channels == 32

    @torch.no_grad()
    def test_from_dense_weights_it_computes_the_same_at_first(self) -> None:
        dense, images = create_backbone(SMALL_SWIN, 64).eval(), torch.randn(3, 3, 64, 64)
        for channels in (8, 128):
            moe = create_backbone(SMALL_SWIN, 64, experts=("a", "b"), expert_channels=channels).eval()
            report = load_weights(moe, dense.state_dict())
            assert f"last {channels} channels copied to every expert" in report.table()
            assert report.backbone_share == 1.0
            for one, other in zip(moe(images, {"b": 2, "a": 1}), dense(images), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_copies_for_an_ema_teacher_are_independent(self) -> None:
        student = self.build(activation_checkpointing=True).train()
        teacher = copy.deepcopy(student)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.zero_()
        assert self.gradients(student) and not any(p.any() for p in teacher.parameters())
        maps = teacher(torch.randn(2, 3, 64, 64), self.counts(2))
        assert not any(level.any() for level in maps)


class TestMissingStrides(BackboneContract):
    """Maps of strides 8 and 16 alone."""

    architecture = replace(SMALL_SWIN, options={**SMALL_SWIN.options, "out_indices": (1, 2)})

    def test_the_pyramid_makes_the_missing_maps(self) -> None:
        backbone = self.build()
        assert backbone.out_channels == (32, 32, 64, 64)
        assert [name for name, _ in backbone.pyramid.named_children()] == ["up2", "down2"]


def test_layers_of_swin_are_its_twelve_blocks() -> None:
    """Patch merging belongs to the block after it, as in timm."""
    swin = create_backbone("swin_t", 64)
    assert swin.num_layers == 13
    for name, layer in (
        ("patch_embed.norm.bias", 0),
        ("layers_0.blocks.0.attn.qkv.weight", 1),
        ("layers_1.downsample.reduction.weight", 3),
        ("layers_1.blocks.0.attn.relative_position_bias_table", 3),
        ("layers_2.blocks.5.mlp.fc2.bias", 10),
        ("layers_3.blocks.1.norm2.weight", 12),
    ):
        assert swin.layer_of(f"body.{name}") == layer, name
    assert len(swin.undecayed) == 12


def test_experts_are_refused_where_there_is_no_place_for_them() -> None:
    without = replace(SMALL_SWIN, max_expert_channels=0)
    with pytest.raises(ValueError, match="swin_t cannot have experts"):
        create_backbone(without, 64, experts=("a",), expert_channels=8)
    with pytest.raises(ValueError, match="expert_channels must be between 1 and 128, got 129"):
        create_backbone(SMALL_SWIN, 64, experts=("a",), expert_channels=129)


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b", "swin_l"])
def test_weights_of_every_size_are_recognised_without_building_it(name: str) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        dense = create_backbone(name, 64)
        moe = create_backbone(name, 64, experts=("a", "b"), expert_channels=256)
    assert identify(dense.state_dict()) == identify(moe.state_dict()) == name
    assert all(parameter.is_meta for parameter in moe.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_relative_positions_of_another_window_are_resampled() -> None:
    source = create_backbone(replace(SMALL_SWIN, options={**SMALL_SWIN.options, "window_size": 6}), 64)
    target = create_backbone(SMALL_SWIN, 64)
    report = load_weights(target, source.state_dict())
    assert "relative positions resampled: windows of 6 to 7" in report.table()
    assert report.backbone_share == 1.0
    block = source.body.layers_2.blocks[1]
    block.set_input_size((4, 4), (7, 7))
    table = target.body.layers_2.blocks[1].attn.relative_position_bias_table
    assert torch.equal(block.attn.relative_position_bias_table, table)


def test_relative_positions_that_cannot_be_resampled_are_an_error() -> None:
    name = "body.layers_0.blocks.0.attn.relative_position_bias_table"
    target = create_backbone(SMALL_SWIN, 64)
    for shape, message in (((120, 1), "120 entries: not of a square window"), ((121, 2), r"\(121, 2\), in")):
        with pytest.raises(CheckpointError, match=message):
            load_weights(target, target.state_dict() | {name: torch.zeros(shape)})


@pytest.mark.parametrize("kind", ["segmentor", "detector", "backbone"])
def test_checkpoints_load_into_other_sizes_and_models(kind: str, tmp_path: Path) -> None:
    source = {
        "segmentor": lambda: build_segmentor("swin_t", {"s4p": 5}, 64, channels=8),
        "detector": lambda: build_detector("swin_t", {"ships": 2}, 64),
        "backbone": lambda: create_backbone("swin_t", 64),
    }[kind]()
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.pth")
    target = build_segmentor("swin_t", {"a": 3, "b": 4}, 128, channels=8)
    report = load_weights(target, tmp_path / "a.pth")
    assert report.backbone_share == 1.0
    body = source.get_submodule("body" if kind == "backbone" else "backbone.body")
    for name, weight in body.state_dict().items():
        assert torch.equal(target.backbone.body.state_dict()[name], weight)


def test_an_incomplete_checkpoint_names_what_is_missing() -> None:
    state = create_backbone("swin_t", 64).state_dict()
    del state["body.layers_3.blocks.1.mlp.fc2.bias"]
    with pytest.raises(ValueError, match=r"body.*1.mlp.fc2.bias: missing, in the model \(768,\)"):
        load_weights(create_backbone("swin_t", 64), state)


def test_weights_of_timm_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = timm.create_model, []

    def offline(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if not pretrained:
            return create(name, **options)
        made.append(create(name, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", offline)
    segmentor = build_segmentor("swin_t", {"a": 3}, 64, channels=8)
    initialise(segmentor, "swin_t", "timm", {}, Path())
    theirs = made[0].state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in segmentor.backbone.body.state_dict().items())


# -- all three trees: two steps with layer decay, a validation, and the weights once more

ON_CPU = ["--device", "cpu"]
LAYERS = {"optim.layer_decay": 0.7}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone `swin_t`, narrower and shallower."""
    monkeypatch.setitem(ARCHITECTURES, "swin_t", SMALL_SWIN)


def test_pre_training(small: None, tmp_path: Path) -> None:
    root, run = s4p_runs.write_dataset(tmp_path / "data"), tmp_path / "run"
    changes = {"model.activation_checkpointing": True, "fixmatch.pseudo_labels": "ema"}
    length = {"schedule.total_iters": 2, "schedule.val_interval": 2}
    args = s4p_runs.arguments(root, run, "--backbone", "swin_t", **LAYERS, **length, **changes)
    assert s4p_runs.script().main(args) == 0
    assert len(s4p_runs.losses(run)) == 2
    assert load_weights(create_backbone("swin_t", 96), run / "swin_t_s4p.pth").backbone_share == 1.0
    args = [str(run / "swin_t_s4p_upernet.pth"), "--config", str(run / "config.yaml"), "--backbone", "swin_t"]
    assert s4p_runs.script("evaluate").main([*args, *ON_CPU, "--work-dir", str(tmp_path / "scores")]) == 0


@pytest.mark.parametrize("backbone", ["swin_t", "swin_t_moe"])
def test_fine_tuning(small: None, backbone: str, tmp_path: Path) -> None:
    root, run = mdf_runs.write_datasets(tmp_path / "data"), tmp_path / "run"
    length = {"schedule.epochs": 1, "schedule.val_interval": 1, "schedule.steps_per_epoch": 2}
    changes = {"model.activation_checkpointing": True}
    args = mdf_runs.arguments(root, run, backbone=backbone, **length, **LAYERS, **changes)
    assert mdf_runs.script().main(args) == 0
    assert len(mdf_runs.losses(run)) == 2
    args = [str(run / f"{backbone}_mdf.pth"), *ON_CPU, "--work-dir", str(tmp_path / "scores")]
    assert mdf_runs.script("evaluate").main(args) == 0


@pytest.mark.parametrize("backbone", ["swin_t", "swin_t_moe"])
def test_detection(small: None, backbone: str, tmp_path: Path) -> None:
    config, run = det_runs.write_config(det_runs.write_datasets(tmp_path)), tmp_path / "run"
    short = [*det_runs.SHORT, "model.expert_channels=48"]
    options = [*ON_CPU, "--cfg-options", f"backbone={backbone}", *short, "optim.layer_decay=0.7"]
    assert det_runs.script().main([str(config), *options, "--work-dir", str(run)]) == 0
    assert len(det_runs.losses(run)) == 2
    args = [str(config), str(run / f"{backbone}_det.pth"), *options, "--work-dir", str(tmp_path / "scores")]
    assert det_runs.script("test").main(args) == 0


def test_parameter_counts_of_the_results_table() -> None:
    """Swin-B: 96.9 and 104.1 million; 387.6 for four and 208.2 for two models."""
    rows = [*params.segmentation_rows("swin_b"), *params.detection_rows("swin_b")]
    counts = {(row.task, row.datasets, row.expert_channels): row.params / 1e6 for row in rows}
    assert round(counts["seg", 1, 0], 3) == 96.877 and round(counts["det", 1, 0], 3) == 104.112
    assert abs(4 * counts["seg", 1, 0] - 387.6) < 0.1 and round(2 * counts["det", 1, 0], 1) == 208.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.crop": 80}, "data.crop = 80: swin_t .* sides are a multiple of 32.*set it to 96"),
        ({"model.compile": True}, "model.compile: swin_t cannot be compiled; set model.compile=false"),
    ],
)
def test_what_it_cannot_do_is_said_before_training(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    root = s4p_runs.write_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match=message):
        s4p_runs.script().main(s4p_runs.arguments(root, tmp_path / "run", "--backbone", "swin_t", **changes))
