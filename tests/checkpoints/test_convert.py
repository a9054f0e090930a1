"""Checkpoint layouts: recognition, conversion both ways, adaptation to a model."""

import json

import numpy as np
import pytest
import torch

from s5.backbones import identify
from s5.backbones.moe import split_experts
from s5.backbones.vit import Variant, ViT, fit_positions
from s5.checkpoints.layouts import convert
from s5.checkpoints.layouts.published import SEGMENTATION_TASKS
from s5.checkpoints.layouts.vit import drop_class_slot
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.trained_models import to_published

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))
FOUR = {"vaihingen": 5, "potsdam": 5, "openearthmap": 9, "loveda": 7}


def segmentor_state(tasks=None, expert_channels=0):
    model = build_segmentor(TINY, tasks or {"seg": 3}, 64, channels=8, expert_channels=expert_channels)
    return model.state_dict()


def mae_state(slots=1):
    """A state dict as MAE saves it: class slot, final norm, mask token and decoder, no pyramid."""
    state = {k: v for k, v in ViT(TINY, 64).state_dict().items() if not k.startswith("pyramid.")}
    state["pos_embed"] = torch.randn(1, 16 + slots, 32)
    extra = ("norm.weight", "mask_token", "decoder_blocks.0.attn.qkv.weight", "decoder_pos_embed")
    return state | {key: torch.zeros(1) for key in extra}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize(
    ("tasks", "expert_channels"),
    [({"isaid": 3}, 0), (FOUR, 0), (FOUR, 8), ({"loveda": 7, "roads": 2}, 0), ({"loveda": 7, "roads": 2}, 8)],
)
def test_a_whole_model_converts_to_the_published_layout_and_back(tasks, expert_channels):
    state = segmentor_state(tasks, expert_channels)
    published = to_published(state)
    assert not any(key.startswith(("backbone.", "heads.")) for key in published)
    weights = convert(published)
    assert weights.layout == "published S5"
    assert weights.unused == ()
    back = {f"backbone.{key}": value for key, value in weights.backbone.items()}
    for task, head in weights.heads.items():
        task = "isaid" if task == "seg" else task  # a published single model does not name its task
        back |= {f"heads.{task}.{key}": value for key, value in head.items()}
    assert_equal(back, state)


def test_a_backbone_converts_to_the_published_layout_and_back():
    state = ViT(TINY, 64).state_dict()
    published = to_published(state)
    assert "layers.3.attn.attn.in_proj_weight" in published
    assert "fpn1.1.ln.weight" in published
    assert_equal(convert(published).backbone, state)


@pytest.mark.parametrize(
    ("file", "backbone", "tasks", "expert_channels"),
    [
        ("keys_s4_vit_b", "vit_b", {"isaid": 16}, 0),
        ("keys_s4_vit_b_rvsa", "vit_b_rvsa", {"isaid": 16}, 0),
        ("keys_ft_mdf_vit_b_moe", "vit_b", FOUR, 256),
    ],
)
def test_published_keys_and_shapes_are_met_exactly(shared, file, backbone, tasks, expert_channels):
    shapes = json.loads((shared / "reference" / "published_keys" / f"{file}.json").read_text())
    with torch.device("meta"):
        model = build_segmentor(backbone, tasks, expert_channels=expert_channels)
        released = {key: torch.empty(shape) for key, shape in shapes.items()}
    weights = convert(released)
    for state in (model.state_dict(), released):
        assert {key: list(value.shape) for key, value in to_published(state).items()} == shapes
    own = {key: value.shape for key, value in model.backbone.state_dict().items()}
    assert {key: value.shape for key, value in weights.backbone.items()} == own
    assert identify(weights.backbone) == backbone and not weights.unused


def test_mae_import_equals_the_published_one(shared):
    golden = np.load(shared / "reference" / "golden" / "golden_mae_import.npz")
    mae = {k.removeprefix("mae."): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("mae.")}
    sd = {k.removeprefix("sd."): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("sd.")}
    weights = convert({"model": mae})
    assert weights.layout == "MAE or timm"
    ours, theirs = fit_positions(weights.backbone, (4, 4)), convert(sd).backbone
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"model": {"state_dict": {f"visual.trunk.{k}": v for k, v in state.items()}}},
        lambda state: {f"encoder.module.{k}": v for k, v in state.items()},
    ],
)
def test_containers_and_prefixes_do_not_matter(wrap):
    state = mae_state()
    assert_equal(convert(wrap(state)).backbone, convert(state).backbone)


def test_a_training_checkpoint_gives_the_student_and_not_the_teacher():
    student = {f"segmentor.{k}": v for k, v in segmentor_state().items()}
    teacher = {f"teacher.network.{k}": torch.zeros_like(v) for k, v in segmentor_state().items()}
    weights = convert({"state_dict": student | teacher, "meta": {}})
    assert torch.equal(weights.backbone["pos_embed"], student["segmentor.backbone.pos_embed"])
    assert set(weights.unused) == set(teacher)
    assert list(weights.heads) == ["seg"]


def test_mae_parts_without_a_place_are_listed():
    weights = convert(mae_state())
    assert set(weights.unused) == {
        "norm.weight",
        "mask_token",
        "decoder_blocks.0.attn.qkv.weight",
        "decoder_pos_embed",
    }


@pytest.mark.parametrize("slots", [0, 1])
def test_the_class_slot_is_the_first_entry_and_only_dropped_if_there(slots):
    table = torch.randn(1, 16 + slots, 8)
    assert torch.equal(drop_class_slot(table), table[:, slots:])


def test_a_positional_embedding_that_is_no_grid_is_an_error_with_its_length():
    with pytest.raises(CheckpointError, match="positional embedding of 20 entries"):
        convert(mae_state(slots=4))
    with pytest.raises(CheckpointError, match="positional embedding of 20 entries"):
        fit_positions({"pos_embed": torch.zeros(1, 20, 8)}, (4, 4))


def test_a_positional_embedding_of_the_right_length_is_kept():
    backbone = {"pos_embed": torch.randn(1, 20, 8)}
    assert fit_positions(backbone, (4, 5)) is backbone


def test_experts_split_from_a_dense_backbone_compute_the_same():
    dense = ViT(TINY, 64).eval()
    moe = ViT(TINY, 64, experts=("a", "b"), expert_channels=8).eval()
    moe.load_state_dict(split_experts(dense.state_dict(), ("a", "b"), 8))
    images = torch.randn(3, 3, 64, 64)
    for one, other in zip(dense(images), moe(images, {"a": 1, "b": 2}), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_experts_of_a_published_encoder_are_named_by_position():
    vit = ViT(TINY, 64, experts=tuple(FOUR), expert_channels=8)
    assert convert(to_published(vit.state_dict())).experts == SEGMENTATION_TASKS
    two = to_published(ViT(TINY, 64, experts=("dior", "dota"), expert_channels=8).state_dict())
    assert convert(two, ("dior", "dota")).experts == ("dior", "dota")
    four = ViT(TINY, 64, experts=("a", "b", "c", "d"), expert_channels=8).state_dict()
    with pytest.raises(CheckpointError, match=r"experts for a,b,c,d: .* stand for vaihingen,potsdam,"):
        to_published(four)
    with pytest.raises(CheckpointError, match="2 experts without names"):
        convert(two, ("dior", "dota", "ships"))


@pytest.mark.parametrize(
    "key",
    [
        "blocks.1.attn.rel_pos_h",
        "blocks.3.mlp.w12.weight",
    ],
)
def test_a_block_of_another_architecture_is_an_error_with_the_key(key):
    with pytest.raises(
        CheckpointError, match=f"'{key}'.*it looks like a ViT.*Known layouts: S5.*published S5.*MAE"
    ):
        convert(mae_state() | {key: torch.zeros(1)})


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)},
        {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "stages.0.weight": torch.zeros(1)},
    ],
)
def test_unrecognised_keys_are_listed_with_the_known_layouts(state):
    with pytest.raises(CheckpointError, match=f"with keys {', '.join(state)}.* Known layouts: S5"):
        convert(state)


def test_blocks_without_a_patch_embedding_are_named():
    state = mae_state()
    del state["patch_embed.proj.weight"]
    with pytest.raises(
        CheckpointError, match="transformer blocks, but no patch embedding .patch_embed.proj.weight"
    ):
        convert({"model": state})


def test_a_file_without_tensors_is_unrecognised():
    with pytest.raises(CheckpointError, match="no key of the checkpoint holds a tensor.*state_dict"):
        convert({"epoch": 3, "model": {}})


def test_a_backbone_without_positions_is_an_error():
    state = mae_state()
    del state["pos_embed"]
    with pytest.raises(CheckpointError, match="no positional embedding"):
        convert(state)


def test_a_backbone_without_pyramid_converts_to_the_published_layout_as_far_as_it_goes():
    weights = convert(state := mae_state())
    back = convert(to_published(state))
    assert back.layout == "published S5"
    assert_equal(back.backbone, weights.backbone)
