"""Layouts of other projects: converted weights give the same output as the project's own network."""

import math
import re

import pytest
import torch
from mmseg.models.backbones import VisionTransformer as MMSegViT
from timm.models.vision_transformer import VisionTransformer as TimmViT

from s5.backbones.vit import ViT
from s5.checkpoints.layouts import convert
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.helpers.vit_checkpoints import (
    DEPTH,
    HEADS,
    SIZE,
    TINY,
    WIDTH,
    drawn,
    renamed,
    to_hugging_face,
    to_hugging_face_5,
    to_mmpretrain,
    tokens,
    with_class_slot,
)

EPS = 1e-6


@pytest.fixture
def timm_vit():
    """Without class token, because this package has tokens of patches only."""
    options = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    return drawn(TimmViT(SIZE, class_token=False, global_pool="avg", **options))


def loaded(checkpoint, layout):
    """Our ViT with the weights, and the report."""
    vit = ViT(TINY, SIZE, norm_eps=EPS).eval()
    report = load_weights(vit, checkpoint)
    assert report.layout == layout
    assert all(name.startswith(("pyramid.", "cls_token")) for name in report.missing)
    assert report.misshaped == ()
    return vit, report


def assert_same_tokens(vit, expected, images):
    ours = tokens(vit, vit.blocks, images)
    assert len(ours) == len(expected) == DEPTH
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_mmsegmentation(bias):
    sizes = {"img_size": SIZE, "embed_dims": WIDTH, "num_layers": DEPTH, "num_heads": HEADS}
    options = {
        "out_indices": list(range(DEPTH)),
        "with_cls_token": False,
        "norm_cfg": {"type": "LN", "eps": EPS},
    }
    network = drawn(MMSegViT(**sizes, **options, patch_bias=bias, qkv_bias=bias))
    images = torch.randn(2, 3, SIZE, SIZE)
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    head = {"decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}
    vit, report = loaded({"meta": {}, "state_dict": state | head}, "mmsegmentation ViT")
    assert report.unexpected == tuple(head)
    assert bool(report.notes) is not bias
    assert_same_tokens(vit, [out.flatten(2).transpose(1, 2) for out in network(images)], images)


@pytest.mark.parametrize(
    ("convert_names", "layout", "position"),
    [
        (dict, "MAE or timm", "pos_embed"),
        (to_mmpretrain, "mmpretrain ViT", "backbone.pos_embed"),
        (to_hugging_face, "Hugging Face ViT", "embeddings.position_embeddings"),
        (to_hugging_face_5, "Hugging Face ViT", "embeddings.position_embeddings"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_names_of_other_projects(timm_vit, convert_names, layout, position, prefix):
    images = torch.randn(2, 3, SIZE, SIZE)
    state = with_class_slot(convert_names(timm_vit.state_dict()), position)
    extra = {"decoder.mask_token": torch.zeros(1)}
    vit, report = loaded({f"{prefix}{key}": value for key, value in state.items()} | extra, layout)
    final_norm = [key for key in report.unexpected if key not in extra]
    assert len(final_norm) == 2, report.unexpected  # the last norm, which features are taken before
    assert_same_tokens(vit, tokens(timm_vit, timm_vit.blocks, images), images)


def sinusoid(length):
    """The table of "Attention is all you need", entry by entry."""
    table = torch.empty(1, length, WIDTH)
    for position in range(length):
        for channel in range(WIDTH):
            angle = position / 10000 ** (2 * (channel // 2) / WIDTH)
            table[0, position, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    return table


def test_the_unofficial_mae_has_no_biases_of_keys_and_computes_its_positions(timm_vit):
    state, biases = {}, {}
    for key, value in timm_vit.state_dict().items():
        if key.endswith("qkv.bias"):
            value[WIDTH : 2 * WIDTH] = 0
            query, _, values = value.clone().chunk(3)
            biases |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): values}
        elif key != "pos_embed":
            state[key] = value
    checkpoint = {"model": {f"encoder.{key}": value for key, value in (state | biases).items()}}
    checkpoint["model"]["encoder_to_decoder.weight"] = torch.zeros(8, WIDTH)
    vit, report = loaded(checkpoint, "unofficial MAE (MAE-pytorch)")
    assert "fixed sin-cos positional embedding of 14x14, which this layout does not store" in report.notes
    torch.testing.assert_close(convert(checkpoint).backbone["pos_embed"], sinusoid(14 * 14))

    images = torch.randn(2, 3, SIZE, SIZE)
    timm_vit.pos_embed.data.copy_(vit.pos_embed)  # both resampled to this size of image
    assert_same_tokens(vit, tokens(timm_vit, timm_vit.blocks, images), images)


def test_learned_positions_of_the_unofficial_mae_are_taken(timm_vit):
    state = {key.replace("qkv.bias", "q_bias"): value[..., :] for key, value in timm_vit.state_dict().items()}
    state = {key: value[:WIDTH] if key.endswith("q_bias") else value for key, value in state.items()}
    state |= {key.replace("q_bias", "v_bias"): value for key, value in state.items() if "q_bias" in key}
    vit, report = loaded(state, "unofficial MAE (MAE-pytorch)")
    assert report.notes == ()
    assert torch.equal(vit.pos_embed, timm_vit.pos_embed)


def test_distillation_tokens_slot_is_dropped_too(timm_vit):
    state = with_class_slot(with_class_slot(timm_vit.state_dict()))
    vit, _ = loaded(state | {"dist_token": torch.zeros(1, 1, WIDTH)}, "MAE or timm")
    assert torch.equal(vit.pos_embed, timm_vit.pos_embed)


def test_biases_of_one_block_alone_may_not_be_missing(timm_vit):
    state = timm_vit.state_dict()
    del state["blocks.2.attn.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.qkv\.bias: missing"):
        load_weights(ViT(TINY, SIZE), state)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (r"layer\.1\..*key\.weight", r"Hugging Face ViT: block 1 has no attn\.key\.weight.*incomplete"),
        (r"layer\.1\..*(query|key|value)\.weight", r"blocks\.1\.attn\.qkv\.weight: missing"),
        (r"layer\.3\.intermediate", r"blocks\.3\.mlp\.fc1\.weight: missing"),
        (r"position_embeddings", "no positional embedding"),
    ],
)
def test_an_incomplete_file_of_another_project_is_an_error(timm_vit, drop, message):
    state = to_hugging_face(timm_vit.state_dict())
    kept = {key: value for key, value in state.items() if not re.search(drop, key)}
    assert len(kept) < len(state)
    with pytest.raises(CheckpointError, match=message):
        load_weights(ViT(TINY, SIZE), kept)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("position_embeddings", (17, WIDTH), r"positional embedding has the shape \(17, 32\)"),
        (
            "layer.1.attention.attention.key.weight",
            (WIDTH, 8),
            r"block 1 .*different shapes: .*key.* \(32, 8\)",
        ),
        ("layer.1.attention.attention.key.bias", (), "key.bias is a single number"),
        ("layer.2.output.dense.weight", (WIDTH, 8), r"blocks\.2\.mlp\.fc2\.weight: \(32, 8\), in the model"),
        ("projection.weight", (WIDTH, 768), r"patch embedding has the shape \(32, 768\)"),
    ],
)
def test_a_tensor_of_another_form_is_an_error(timm_vit, name, shape, message):
    state = to_hugging_face(timm_vit.state_dict())
    key = next(key for key in state if key.endswith(name))
    with pytest.raises(CheckpointError, match=message):
        load_weights(ViT(TINY, SIZE), state | {key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("backbone.layers.0.attn.gamma1.weight", "layer scale"),
        ("backbone.layers.0.attn.relative_position_bias_table", "BEiT"),
        ("backbone.ln_pre.weight", None),
        ("backbone.pre_norm.weight", None),
        ("backbone.patch_embed.norm.weight", None),
    ],
)
def test_a_layer_that_a_plain_vit_lacks_is_an_error(timm_vit, key, name):
    state = to_mmpretrain(timm_vit.state_dict()) | {key: torch.zeros(WIDTH)}
    looks = f"it looks like .*{name}" if name else "a plain ViT does not have"
    with pytest.raises(CheckpointError, match=rf"'{key.removeprefix('backbone.')}'.*{looks}"):
        convert(state)


def test_weights_of_videos_are_an_error(timm_vit):
    state = timm_vit.state_dict() | {"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 2, 16, 16)}
    with pytest.raises(CheckpointError, match=r"of a video model has the shape \(32, 3, 2, 16, 16\)"):
        convert(state)


def test_blocks_of_one_layout_with_the_patch_embedding_of_another_are_an_error(timm_vit):
    state = renamed(timm_vit.state_dict(), (r"patch_embed\.proj", "patch_embed.projection"))
    with pytest.raises(CheckpointError, match="patch embedding has another name"):
        convert(state)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layer3.5.conv1.weight", "ResNet"),
        ("backbone.layer1.0.conv1.weight", "ResNet"),
        ("layers.0.blocks.1.attn.relative_position_bias_table", "Swin"),
        ("backbone.stages.2.blocks.0.attn.w_msa.qkv.weight", "Swin"),
        ("swin.encoder.layers.0.blocks.0.attention.self.query.weight", "Swin"),
        ("bert.embeddings.word_embeddings.weight", "language model"),
        ("model.embed_tokens.weight", "language model"),
        ("transformer.wte.weight", "language model"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "CLIP"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "torchvision"),
        ("image_encoder.blocks.0.attn.rel_pos_h", "SAM"),
        ("encoder.layer.0.layer_scale1.lambda1", "DINOv2"),
        ("blocks.0.ls1.gamma", "DINOv2"),
        ("blocks.0.attn.sampling_offsets_k.2.weight", "RVSA"),
        ("backbone.stage3.0.fuse_layers.0.1.0.weight", "HRNet"),
        ("stages.0.1.dwconv.weight", "ConvNeXt"),
        ("inc.double_conv.0.weight", "U-Net"),
        ("downsample_layers.1.0.weight", "ConvNeXt"),
        ("model.0.conv.weight", "YOLO"),
        ("backbone.backbone.dark2.0.conv.weight", "YOLO"),
        ("image_encoder.neck.0.weight", "SAM"),
        ("mask_decoder.iou_token.weight", "SAM"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "the text encoder of CLIP"),
        ("text_projection", "the text encoder of CLIP"),
        ("base_model.model.encoder.layer.0.attention.q.lora_B.default.weight", "LoRA"),
        ("rpn_head.rpn_cls.weight", "a detector of MMDetection or MMRotate, with an unknown backbone"),
        ("base_model.blocks.0.attn.qkv.lora_A.weight", "LoRA"),
    ],
)
def test_weights_of_another_architecture_are_named(key, name):
    with pytest.raises(CheckpointError, match=rf"it looks like .*{name}.*Known layouts"):
        convert({key: torch.zeros(1), "head.weight": torch.zeros(1)})


def test_a_detector_is_named_with_its_backbone():
    keys = ("backbone.layer1.0.conv1.weight", "bbox_head.retina_cls.weight", "neck.fpn_convs.0.conv.weight")
    with pytest.raises(CheckpointError, match="a detector of MMDetection or MMRotate, with a ResNet"):
        convert({"state_dict": {key: torch.zeros(1) for key in keys}, "meta": {"CLASSES": ()}})


def test_the_most_telling_key_names_the_architecture(timm_vit):
    rvsa = {
        "blocks.0.attn.rel_pos_h": torch.zeros(1),
        "blocks.0.attn.sampling_offsets_v.2.weight": torch.zeros(1),
    }
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.attn\.sampling_offsets_v.*looks like .*kvdiff"):
        convert(timm_vit.state_dict() | rvsa)


@pytest.mark.parametrize("source", ["timm", "mmseg", "ours"])
def test_a_plain_vit_is_taken_for_nothing_else(timm_vit, source):
    networks = {
        "timm": timm_vit,
        "ours": ViT(TINY, SIZE),
        "mmseg": MMSegViT(embed_dims=WIDTH, num_layers=1, num_heads=4),
    }
    assert guess(networks[source].state_dict()) is None
