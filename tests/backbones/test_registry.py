"""The registry: names of dense backbones and of those with experts, and recognition of weights."""

import pytest
import torch

from s5.backbones import create_backbone, describe, get_architecture, identify, list_backbones
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError


def test_names_and_names_with_experts() -> None:
    dense = list_backbones()
    assert dense[:2] == ["vit_t", "vit_s"] and "swin_t" in dense and not any("moe" in name for name in dense)
    moe = list_backbones(experts=True)[len(dense) :]
    assert "vit_t_moe" in moe and "swin_t_moe" in moe
    assert get_architecture("vit_t_moe") is get_architecture("vit_t")


@pytest.mark.parametrize("name", ["vit_x", "swin_x_moe"])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}'.*vit_t, vit_s, .*swin_t, .*vit_g_moe"):
        create_backbone(name)


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'vit_bmoe'.*; did you mean 'vit_b_moe'\?"):
        create_backbone("vit_bmoe")


def test_weights_say_which_backbone_they_are_of() -> None:
    for name in ("vit_t", "swin_t"):
        assert identify(create_backbone(name, 64).state_dict()) == name
    other = {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16), "blocks.3.norm1.weight": torch.zeros(32)}
    assert identify(other) is None and describe(other) == "width 32, depth 4, patch 16"
    assert describe({"conv1.weight": torch.zeros(1)}) == "an unknown network"


def test_weights_of_another_backbone_are_refused_by_name() -> None:
    weights = create_backbone("vit_t", 64).state_dict()
    with pytest.raises(CheckpointError, match="width 192.* in swin_t.*checkpoint is a vit_t: choose vit_t"):
        load_weights(create_backbone("swin_t", 64), weights)
    weights = create_backbone("swin_t", 64).state_dict()
    with pytest.raises(CheckpointError, match="timm's swin_tiny.* in vit_t.*choose swin_t as the backbone"):
        load_weights(create_backbone("vit_t", 64), weights)
