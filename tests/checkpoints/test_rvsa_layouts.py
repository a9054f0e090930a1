"""Files of RVSA, SAMRS and MTP: they compute the same, whatever their code calls or leaves out."""

import pytest
import torch

from s5.backbones.rvsa import RvsaViT
from s5.checkpoints.layouts import convert, get_layout
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.helpers.project_files import mtp, released, samrs
from tests.helpers.vit_checkpoints import RVSA, SIZE, drawn, renamed

TABLES = r"(blocks\.[13]\.attn\.)full_attn_"


@pytest.fixture
def rvsa():
    return drawn(RvsaViT(RVSA, SIZE))


def assert_equal_maps(one, other):
    images = torch.randn(1, 3, SIZE, SIZE)
    for ours, theirs in zip(one(images), other(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def loaded(state, layout="RVSA, SAMRS or MTP"):
    backbone = RvsaViT(RVSA, SIZE).eval()
    report = load_weights(backbone, state)
    assert report.layout == layout and not report.missing and not report.misshaped
    return backbone, report


@torch.no_grad()
def test_the_pre_training_of_mtp(rvsa):
    """The file of the encoder, and the whole model with the heads of its three tasks."""
    backbone, report = loaded(mtp(rvsa))
    assert_equal_maps(backbone, rvsa)
    assert report.unexpected == ("norm.weight", "norm.bias") and report.notes == ()

    heads = (
        "semsegdecoder.decode_head.conv_seg",
        "semseghead_1.1",
        "inssegdecoder.neck.lateral_convs.0.conv",
    )
    model = mtp(rvsa)["state_dict"] | {f"module.{head}.weight": torch.zeros(1) for head in heads}
    backbone, report = loaded({"epoch": 3, "state_dict": model})
    assert_equal_maps(backbone, rvsa)
    assert set(report.unexpected) > {f"{head}.weight" for head in heads}


@torch.no_grad()
def test_a_fine_tuned_segmentor_of_mtp(rvsa):
    """Without the norm after the blocks, and with the names of mmsegmentation."""
    model = {f"backbone.{key}": value for key, value in released(rvsa).items()}
    backbone, report = loaded({"state_dict": model | {"decode_head.conv_seg.weight": torch.zeros(1)}})
    assert_equal_maps(backbone, rvsa)
    assert report.unexpected == ("decode_head.conv_seg.weight",)


@torch.no_grad()
def test_samrs_has_no_positions_in_global_attention(rvsa):
    backbone, report = loaded(samrs(rvsa))
    assert report.notes == ("no relative positions of global attention in the checkpoint: set to zero",)
    for name, parameter in rvsa.named_parameters():
        if "full_attn" in name:
            parameter.zero_()
    assert_equal_maps(backbone, rvsa)


@torch.no_grad()
def test_rvsa_has_other_names_in_global_attention(rvsa):
    state = renamed(released(rvsa), (TABLES, r"\1"))
    backbone, report = loaded({"state_dict": {f"backbone.{k}": v for k, v in state.items()}})
    assert_equal_maps(backbone, rvsa)
    assert report.notes == ("its pyramid had four times the last block's output as input, not four blocks",)


@torch.no_grad()
def test_the_released_backbone(rvsa):
    backbone, report = loaded(released(rvsa), "published S5 with RVSA")
    assert_equal_maps(backbone, rvsa)
    assert report.unexpected == () and report.notes == ()


def test_windows_without_relative_positions_are_an_error(rvsa):
    state = {key: value for key, value in released(rvsa).items() if "rel_pos_" not in key}
    with pytest.raises(CheckpointError, match=r"without relative positions \(attn\.rel_pos_h\)"):
        convert(state)


def test_windows_of_their_own_for_keys_and_values_are_an_error(rvsa):
    state = renamed(released(rvsa), ("sampling_offsets", "sampling_offsets_k"))
    with pytest.raises(CheckpointError, match=r"sampling_offsets_k.*looks like .*\(kvdiff\)"):
        convert(state)


@pytest.mark.parametrize("key", ["timm", "mmseg"])
def test_layouts_of_a_plain_vit_cannot_hold_it(rvsa, key):
    with pytest.raises(CheckpointError, match=r"has 'blocks\.0\.attn\.\w+', for which"):
        get_layout(key).from_ours(convert(rvsa.state_dict()))
