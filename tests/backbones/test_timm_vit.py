"""Plain ViTs of timm: the contract of small ones, equal features, resampling, experts, names."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from s5.backbones import IMAGENET, Lora, create_backbone, get_architecture, identify, list_backbones
from s5.backbones.normalization import DINOV3_SAT
from s5.backbones.timm_vit import TIMM_VITS, TimmViT, TimmViTModel, plain_vit
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.backbones.contract import BackboneContract, ExpertsContract
from tests.helpers.timm_vits import TINY, drawn_timm, tiny


class TestDinoV2(BackboneContract):
    architecture = TINY["dinov2"]


class TestDinoV2Registers(BackboneContract):
    architecture = TINY["dinov2_reg"]


class TestDinoV2Giant(ExpertsContract):
    """SwiGLU with one first layer."""

    architecture = TINY["dinov2_g"]


class TestDinoV3(ExpertsContract):
    architecture = TINY["dinov3"]


class TestDinoV3Huge(ExpertsContract):
    """SwiGLU with two first layers."""

    architecture = TINY["dinov3_7b"]
    lora = Lora(4, 6.0, ("attn.qkv", "attn.proj", "mlp.fc1_g"))


class TestClip(BackboneContract):
    """A norm before the blocks, none of the registers and scales."""

    architecture = TINY["clip"]


class TestMixedRotary(BackboneContract):
    """Rotary positions that are learned for every block."""

    architecture = TINY["rope_mixed"]


@pytest.mark.parametrize("name", TIMM_VITS)
def test_registered_sizes_are_those_of_timm(name: str) -> None:
    row = TIMM_VITS[name]
    assert plain_vit(name, row.timm).width == row.width == row.max_expert_channels
    assert name in list_backbones() and f"{name}_moe" in list_backbones(experts=True)


def test_the_largest_is_built_without_memory() -> None:
    with torch.device("meta"):
        backbone = create_backbone("dinov3_7b_moe", 512, experts=("a", "b"), expert_channels=256)
    assert sum(p.numel() for p in backbone.body.parameters()) > 6.7e9
    assert all(p.is_meta for p in backbone.parameters())


@pytest.mark.parametrize("kind", TINY)
@torch.no_grad()
def test_features_equal_those_of_timm(kind: str) -> None:
    """Those of `forward_intermediates(norm=True)`, at the size of the positions and at others."""
    network = drawn_timm(kind, 64)
    backbone = create_backbone(TINY[kind], 64).eval()
    report = load_weights(backbone, network.state_dict())
    assert report.layout == "timm ViT" and report.backbone_share == 1.0
    levels = []
    backbone.pyramid.register_forward_pre_hook(lambda _, inputs: levels.extend(inputs[0]))
    for size in ((64, 64), (32, 80)):
        images = torch.randn(2, 3, *size)
        levels.clear()
        backbone(images)
        expected = network.forward_intermediates(
            images, indices=backbone.out_blocks, norm=True, intermediates_only=True
        )
        for one, other in zip(levels, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_patches_of_14_pixels_and_positions_are_resampled_as_timm_does() -> None:
    network = drawn_timm("dinov2_reg", 56, patch_size=14)
    backbone = create_backbone(TINY["dinov2_reg"], 96)
    report = load_weights(backbone, network.state_dict())
    assert {note.split(" resampled")[0] for note in report.notes} == {
        "patch embedding of 14x14 pixels",
        "positional embedding of 4x4 patches",
    }
    body = backbone.body
    weight = resample_patch_embed(network.patch_embed.proj.weight, [16, 16])
    torch.testing.assert_close(body.patch_embed.proj.weight, weight)
    table = resample_abs_pos_embed(network.pos_embed, (6, 6), (4, 4), num_prefix_tokens=0)
    torch.testing.assert_close(body.pos_embed, table)


@pytest.mark.parametrize("kind", ["dinov2_reg", "dinov2_g", "dinov3_7b"])
@torch.no_grad()
def test_experts_compute_at_first_what_the_dense_network_does(kind: str) -> None:
    network = drawn_timm(kind, 64)
    dense = create_backbone(TINY[kind], 64).eval()
    experts = create_backbone(TINY[kind], 64, experts=("a", "b"), expert_channels=8).eval()
    load_weights(dense, network.state_dict())
    report = load_weights(experts, network.state_dict())
    assert any("copied to every expert" in note for note in report.notes)
    experts.pyramid.load_state_dict(dense.pyramid.state_dict())
    images = torch.randn(3, 3, 64, 64)
    for counts in ({"a": 1, "b": 2}, {"b": 3}):
        for one, other in zip(experts(images, counts), dense(images), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_activation_checkpoints_of_two_passes_keep_their_own_tasks() -> None:
    """The second pass must not change the experts that the first one recomputes with."""

    def gradients(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        options = {"experts": ("a", "b"), "expert_channels": 8, "drop_path": 0.0}
        backbone = create_backbone(TINY["dinov3"], 64, activation_checkpointing=recompute, **options)
        first, second = torch.randn(2, 1, 3, 64, 64)
        one, other = backbone(first, {"a": 1}), backbone(second, {"b": 1})
        sum(level.square().mean() for level in (*one, *other)).backward()
        return [p.grad for p in backbone.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_zero_biases_of_queries_and_values_come_and_go() -> None:
    with_bias = tiny("vit_small_patch16_dinov3_qkvb", init_values=1.0)
    source = create_backbone(with_bias, 64).state_dict()
    assert any(name.endswith("q_bias") for name in source)
    target = create_backbone(TINY["dinov3"], 64)
    assert any("left out: all are zero" in note for note in load_weights(target, source).notes)
    back = load_weights(create_backbone(with_bias, 64), target.state_dict())
    assert any("set to zero" in note for note in back.notes)
    source["body.blocks.2.attn.v_bias"][0] = 1
    with pytest.raises(CheckpointError, match="timm:vit_small_patch16_dinov3_qkvb"):
        load_weights(target, source)


def test_positions_of_no_square_are_an_error_with_the_shape() -> None:
    state = create_backbone(TINY["dinov2"], (32, 64)).state_dict()
    with pytest.raises(CheckpointError, match=r"\(1, 9, 32\): without 1 entries .* not a square"):
        load_weights(create_backbone(TINY["dinov2"], 64), state)


def test_weights_say_which_model_they_are_of() -> None:
    with torch.device("meta"):
        for name in ("dinov2_b", "dinov2_b_reg", "dinov3_b", "dinov3_l"):
            assert identify(create_backbone(name, 64).state_dict()) == name
    row = get_architecture("dinov2_b_reg")
    with torch.device("meta"):
        assert row.img_size_of(create_backbone("dinov2_b", 160).state_dict()) == 160


def test_weights_of_another_model_are_refused_by_name() -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=224).state_dict()
    with pytest.raises(
        CheckpointError, match="timm's vit_base_patch14_dinov2 in the checkpoint.*a dinov2_b: "
    ):
        load_weights(create_backbone("vit_t", 64), state)
    with pytest.raises(CheckpointError, match="choose dinov2_b as the backbone"):
        load_weights(create_backbone(TINY["dinov3"], 64), state)


def test_layer_scales_and_tokens_have_no_weight_decay() -> None:
    backbone = create_backbone(TINY["dinov2_reg"], 64)
    names = {name.split(".", 3)[-1] if "blocks" in name else name for name in backbone.undecayed}
    assert names == {"body.cls_token", "body.reg_token", "body.pos_embed", "ls1.gamma", "ls2.gamma"}


class TestNames:
    """`timm:NAME`."""

    def test_a_plain_vit(self) -> None:
        row = get_architecture("timm:vit_base_patch16_clip_224_moe")
        assert isinstance(row, TimmViTModel) and row.width == 768 and str(row.normalization) == "clip"
        assert row is get_architecture("timm:vit_base_patch16_clip_224")

    def test_a_tag_brings_its_normalisation(self) -> None:
        assert get_architecture("timm:vit_large_patch16_dinov3.sat493m").normalization == DINOV3_SAT
        large = get_architecture("dinov3_l")
        assert large.normalization == IMAGENET
        assert large.with_weights("dinov3_sat").normalization == DINOV3_SAT
        assert large.with_weights("timm") is large

    def test_a_hierarchical_network(self) -> None:
        backbone = create_backbone("timm:resnet10t", 64)
        assert not isinstance(backbone, TimmViT)
        assert backbone.get_parameter(backbone.stem).shape[1] == 3
        assert [level.shape[-1] for level in backbone(torch.zeros(2, 3, 64, 64))] == [16, 8, 4, 2]
        with pytest.raises(ValueError, match="timm:resnet10t cannot have experts"):
            get_architecture("timm:resnet10t_moe")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("timm:vit_base_patch16_224x", "no model.*did you mean 'timm:vit_base_patch16_224"),
            ("timm:vit_small_patch16_dinov3.imagenet", "no weights 'imagenet'.* it has lvd1689m"),
            ("timm:crossvit_9_240", "of its feature maps of strides 12, 17, none of"),
            ("dinov2_x", "known backbones: vit_t.*did you mean 'dinov2_"),
        ],
    )
    def test_what_cannot_be_a_backbone_is_said(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            get_architecture(name)


def test_an_ffn_of_another_form_cannot_have_experts() -> None:
    parallel = tiny("vit_base_patch16_xp_224")
    with pytest.raises(ValueError, match="has no FFN .* that can have experts"):
        create_backbone(parallel, 64, experts=("a",), expert_channels=8)
