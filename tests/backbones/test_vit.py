"""Plain ViT: sizes, positional embeddings, attention, memory, experts, and the contract of backbones."""

import numpy as np
import pytest
import torch
from timm.layers import Mlp

from s5.backbones.embeddings import resample_positions
from s5.backbones.moe import MoeMlp, split_experts
from s5.backbones.vit import VARIANTS, Variant, ViT
from tests.backbones.contract import BackboneContract, ExpertsContract

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))


def tiny_vit(**options) -> ViT:
    return ViT(TINY, 64, drop_path=0.0, **options)


class TestViT(BackboneContract):
    architecture = TINY


class TestMoeViT(ExpertsContract):
    architecture = TINY


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_four_output_blocks_and_whole_heads(name):
    variant = VARIANTS[name]
    assert len(variant.out_blocks) == 4
    assert list(variant.out_blocks) == sorted(variant.out_blocks)
    assert variant.out_blocks[-1] == variant.depth - 1
    assert variant.width % variant.heads == 0


def test_fused_attention_equals_plain_attention():
    vit = tiny_vit().eval()
    images = torch.randn(2, 3, 64, 64)
    assert all(block.attn.fused_attn for block in vit.blocks)
    fused = vit(images)
    for block in vit.blocks:
        block.attn.fused_attn = False
    for a, b in zip(fused, vit(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_norms_of_the_blocks_have_the_published_epsilon():
    vit = tiny_vit()
    assert {block.norm1.eps for block in vit.blocks} | {block.norm2.eps for block in vit.blocks} == {1e-5}
    assert vit.pyramid.up4[1].eps == 1e-6


def test_drop_path_rises_linearly_and_spares_the_attention_branch():
    vit = ViT(TINY, 64, drop_path=0.3)
    np.testing.assert_allclose([block.drop_path.drop_prob for block in vit.blocks], [0, 0.1, 0.2, 0.3])
    block = vit.blocks[-1].train()
    block.drop_path.drop_prob = 1.0 - 1e-9
    tokens = torch.randn(2, 16, 32)
    torch.testing.assert_close(block(tokens), tokens + block.attn(block.norm1(tokens)))


def test_positional_embedding_is_resampled_only_for_other_grids():
    table = torch.randn(1, 16, 8)
    assert resample_positions(table, (4, 4), (4, 4)) is table
    assert resample_positions(table, (4, 4), (3, 6)).shape == (1, 18, 8)


def test_resampled_positional_embedding_keeps_rows_and_columns_apart():
    rows = torch.arange(4.0).repeat_interleave(4)  # value = row
    columns = torch.arange(4.0).repeat(4)  # value = column
    table = torch.stack((rows, columns), dim=1).unsqueeze(0)
    out = resample_positions(table, (4, 4), (8, 4)).reshape(8, 4, 2)
    assert torch.allclose(out[..., 0], out[:, :1, 0].expand(8, 4), atol=1e-6)
    assert (out[1:, 0, 0] > out[:-1, 0, 0]).all()
    assert torch.allclose(out[..., 1], torch.arange(4.0).expand(8, 4), atol=1e-6)


def test_positional_embedding_of_a_rectangular_image_size():
    vit = ViT(TINY, (32, 96))
    assert vit.grid == (2, 6)
    assert vit.pos_embed.shape == (1, 12, 32)
    assert vit(torch.zeros(1, 3, 32, 96))[2].shape[-2:] == (2, 6)


def test_activation_checkpointing_keeps_less_for_the_backward_pass():
    def saved_bytes(checkpointing):
        vit = tiny_vit(activation_checkpointing=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            vit(torch.randn(2, 3, 64, 64))
        return sum(sizes)

    assert saved_bytes(True) < 0.6 * saved_bytes(False)


def test_every_parameter_but_the_class_token_gets_a_gradient():
    vit = tiny_vit(experts=("a", "b"), expert_channels=8)
    sum(m.square().mean() for m in vit(torch.randn(3, 3, 64, 64), {"a": 2, "b": 1})).backward()
    without = [name for name, p in vit.named_parameters() if p.grad is None]
    assert without == ["cls_token"]
    assert not vit.cls_token.requires_grad


def test_expert_weights_of_one_task_equal_a_plain_ffn_bit_for_bit():
    plain = Mlp(32, 128)
    moe = MoeMlp(32, 128, ("only",), 8)
    moe.fc1.load_state_dict(plain.fc1.state_dict())
    moe.fc2.load_state_dict({k: v[:24] for k, v in plain.fc2.state_dict().items()})
    moe.experts["only"].load_state_dict({k: v[24:] for k, v in plain.fc2.state_dict().items()})
    tokens = torch.randn(3, 16, 32)
    assert torch.equal(moe(tokens, {"only": 3}), plain(tokens))


def test_experts_as_wide_as_the_backbone_share_nothing_and_compute_at_first_what_the_dense_one_does():
    dense, moe = tiny_vit().eval(), tiny_vit(experts=("a", "b"), expert_channels=32).eval()
    moe.load_state_dict(split_experts(dense.state_dict(), ("a", "b"), 32))
    assert not [name for name, _ in moe.named_parameters() if ".fc2." in name]
    images = torch.randn(3, 3, 64, 64)
    expected = dense(images)
    for counts in ({"a": 2, "b": 1}, {"b": 3}, {"b": 1, "a": 2}):
        for got, want in zip(moe(images, counts), expected, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_no_expert_channels_give_a_dense_backbone():
    vit = tiny_vit(experts=("a", "b"), expert_channels=0)
    assert vit.experts == ()
    assert vit.state_dict().keys() == tiny_vit().state_dict().keys()


@pytest.mark.parametrize("channels", [33, -1])
def test_expert_channels_out_of_range_are_an_error_with_the_value(channels):
    with pytest.raises(ValueError, match=f"between 1 and 32, got {channels}"):
        tiny_vit(experts=("a",), expert_channels=channels)
