"""Families of timm's models by name: features, files, positions of other sizes, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch

from s5.backbones import create_backbone, get_architecture
from s5.backbones.timm_derived import OTHERS, derive
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.backbones.contract import SIZE

NARROW = {"embed_dim": 32, "depth": 4, "num_heads": 4}
HIERA = {"embed_dim": 32, "num_heads": 1, "stages": (1, 1, 2, 1)}

SMALL: dict[str, dict[str, object]] = {
    "beit_base_patch16_224": NARROW,
    "beitv2_base_patch16_224": NARROW,
    "cait_xxs24_224": NARROW,
    "deepseek_vit_412m": NARROW,
    "efficientvit_m0": {},
    "hiera_tiny_224": HIERA,
    "naflexvit_base_patch16_gap": NARROW,
    "nest_tiny": {},
    "qwen3_vit_88m": NARROW,
    "samvit_base_patch16": {**NARROW, "global_attn_indexes": (1, 3)},
    "test_coatnet": {},
    "test_vit_relpos": {},
    "vit_relpos_base_patch16_cls_224": NARROW,
    "vit_tiny_r_s16_p8_224": NARROW,
    "xcit_nano_12_p16_224": NARROW,
}
"""Small models of the modules of timm."""
RESAMPLED = ("beit_base_patch16_224", "cait_xxs24_224", "nest_tiny", "test_coatnet", "hiera_tiny_224")
# What timm has, and of what it gives maps, grows with its versions.
known = pytest.mark.skipif(not timm.is_model("deepseek_vit_412m"), reason="timm is older than 1.0.31")


def as_published(name: str, size: int) -> torch.nn.Module:
    """timm's own network with random weights for images of this size, or of any."""
    row = derive(name, **SMALL[name])
    options = {**row.options, **({"img_size": size} if row.per_size else {})}
    network = timm.create_model(name, **options).eval()
    for key, parameter in network.named_parameters():
        if "pos" in key or "bias_table" in key or "biases" in key:  # else zeros
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("name", filter(timm.is_model, SMALL))
@torch.no_grad()
def test_a_file_of_timm_is_read_and_features_are_those_of_timm(name: str) -> None:
    row, network = derive(name, **SMALL[name]), as_published(name, SIZE)
    backbone = create_backbone(row, SIZE).eval()
    report = load_weights(backbone, {"state_dict": network.state_dict()})
    assert report.layout == f"of timm:{name}" and report.backbone_share == 1.0
    levels: list[torch.Tensor] = []
    backbone.pyramid.register_forward_pre_hook(lambda _, inputs: levels.extend(inputs[0]))
    images = torch.randn(2, 3, SIZE, SIZE)
    maps = backbone(images)
    expected = network.forward_intermediates(images, indices=row.out_indices, intermediates_only=True)
    for level, place in zip(levels, backbone.levels, strict=True):
        torch.testing.assert_close(level, expected[place], atol=1e-5, rtol=1e-5)
    assert [level.shape[-1] for level in maps] == [16, 8, 4, 2]
    layers = [backbone.layer_of(key) for key, _ in backbone.named_parameters()]
    assert layers == sorted(layers) and len(set(layers)) > 3


@pytest.mark.parametrize("name", filter(timm.is_model, RESAMPLED))
@torch.no_grad()
def test_positions_of_another_size_are_resampled(name: str) -> None:
    row, network = derive(name, **SMALL[name]), as_published(name, SIZE)
    backbone = create_backbone(row, 2 * SIZE)
    report = load_weights(backbone, network.state_dict())
    assert any("resampled: " in note for note in report.notes) and report.backbone_share == 1.0
    back = create_backbone(row, SIZE)
    assert load_weights(back, backbone.state_dict()).backbone_share == 1.0
    stem = backbone.stem
    assert torch.equal(back.get_parameter(stem), backbone.get_parameter(stem))


@torch.no_grad()
def test_positions_are_resampled_as_timm_does(tmp_path: Path) -> None:
    name, network = "beit_base_patch16_224", as_published("beit_base_patch16_224", SIZE)
    torch.save(network.state_dict(), tmp_path / "beit.pth")
    theirs = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "beit.pth")},
        img_size=2 * SIZE,
        **SMALL[name],
    )
    backbone = create_backbone(derive(name, **SMALL[name]), 2 * SIZE)
    load_weights(backbone, tmp_path / "beit.pth")
    own = backbone.body.model.state_dict()
    for key, tensor in theirs.state_dict().items():
        if key in own:
            torch.testing.assert_close(own[key], tensor, atol=1e-6, rtol=0, msg=key)


@known
@torch.no_grad()
def test_patches_of_14_pixels_are_resampled() -> None:
    row = derive("deepseek_vit_412m", **NARROW)
    network = timm.create_model("deepseek_vit_412m", **NARROW)
    assert row.options["patch_size"] == 16 and network.encoder.patch_embed.patch_size == (14, 14)
    report = load_weights(create_backbone(row, SIZE), network.state_dict())
    assert "patch embedding of 14x14 pixels resampled to 16x16" in report.notes


@torch.no_grad()
def test_linear_patch_embeddings_become_convolutions() -> None:
    name = "naflexvit_base_patch16_gap"
    network = timm.create_model(name, **NARROW).eval()
    assert network.embeds.proj.weight.ndim == 2
    backbone = create_backbone(derive(name, **NARROW), SIZE).eval()
    load_weights(backbone, network.state_dict())
    images = torch.randn(1, 3, SIZE, SIZE)
    (expected,) = network.forward_intermediates(images, indices=[3], intermediates_only=True)
    torch.testing.assert_close(backbone.body(images)[3], expected, atol=1e-5, rtol=1e-5)


def test_weights_that_belong_to_one_size_are_refused_with_both_shapes() -> None:
    """A mixer has a layer across the patches."""
    row = derive("mixer_s16_224")
    state = create_backbone(row, SIZE).state_dict()
    with pytest.raises(
        CheckpointError, match=r"mlp_tokens\.fc1\.weight: \(256, 16\), in the model \(256, 36\)"
    ):
        load_weights(create_backbone(row, 96), state)


def test_timms_weights_of_another_size_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = timm.create_model, []

    def offline(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        network = create(name, **options)
        if pretrained:
            made.append(network)
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    backbone = create_backbone(derive("beit_base_patch16_224", **NARROW), SIZE)
    load_weights(backbone, backbone.architecture.pretrained())
    assert made[0].model.patch_embed.img_size == (224, 224)
    assert torch.equal(made[0].model.cls_token, backbone.body.model.cls_token)


def test_layers_are_for_one_size_of_images_where_timm_cannot_do_more() -> None:
    assert derive("efficientformer_l1").side == 224
    with pytest.raises(ValueError, match="of 224x224 pixels only"):
        create_backbone("timm:efficientformer_l1", 256)
    assert derive("efficientvit_m0").divisor == 64


@known
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crossvit_9_240", "of its feature maps of strides 12, 17, none of strides 4, 8, 16, 32 can be made"),
        ("pit_ti_224", "its maps have 27x27, 14x14, 7x7 pixels, not 28x28, 14x14, 7x7"),
        ("sequencer2d_s", "of its feature maps of strides 7, 14, 14, none"),
    ],
)
def test_what_timm_has_no_maps_of_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"timm:{name}: .*{message}.*; choose another model, such as"):
        get_architecture(f"timm:{name}")


def test_refusals_name_models_that_work() -> None:
    names = OTHERS.partition("such as ")[2].replace(" or ", ", ").split(", ")
    assert len(names) == 3 and all(get_architecture(name) for name in names)


REFUSED: dict[str, dict[str, object]] = {
    "convmixer_768_32": {},  # patches of 7 pixels, as in all below without a reason
    "crossvit_tiny_240": {},  # two grids of patches of 12 and 16 pixels
    # cosine transform in place of the first convolution
    "csatv2": {"depths": (1, 1, 1, 1), "transformer_depths": (0, 0, 1, 1)},
    "gemma4_vit_167m": {"depth": 4},  # linear patch embedding, and positions that depend on values
    "inception_v3": {},  # no padding in the first layers, as in the next three
    "legacy_xception": {},
    "nasnetalarge": {},
    "pnasnet5large": {},
    "pit_b_224": {},
    "sequencer2d_s": {},
    "tresnet_m": {},  # rearranges pixels in place of the first convolution
}
"""One model of each module of timm without any that can be a backbone; fewer blocks where it has many."""


@known
@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_page_says_cannot_be_used_cannot(name: str) -> None:
    with pytest.raises(ValueError, match=f"timm:{name}: .*; {OTHERS}"):
        derive(name, **REFUSED[name])
