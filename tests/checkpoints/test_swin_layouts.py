"""Layouts of Swin: their contract, and features against the projects' own networks."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from mmseg.models.backbones.swin import SwinTransformer as MMSegSwin

from s5.backbones import create_backbone
from s5.backbones.timm_derived import derive
from s5.backbones.timm_models import TIMM_MODELS
from s5.checkpoints.layouts import convert, get_layout
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.checkpoints.test_layout_contract import LayoutContract
from tests.helpers.project_files import gfm, to_microsoft
from tests.helpers.vit_checkpoints import apart, drawn, renamed

SIZE, WINDOW = 96, 2
SHAPE = {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 2, 2)}
ROW = TIMM_MODELS["swin_t"]
SMALL = replace(ROW, options={**ROW.options, **SHAPE, "window_size": WINDOW}, max_expert_channels=128)


def swin(row=SMALL, **options):
    return create_backbone(row, SIZE, **options)


def timm_swin(features=False, window=WINDOW):
    """timm's own Swin, whose tensors all matter."""
    options = {**ROW.options, **SHAPE, "window_size": window}
    return drawn(timm.create_model(ROW.timm, features_only=features, **options))


def stages_of(network, images):
    """Maps after every stage of timm's whole Swin."""
    return network.forward_intermediates(images, intermediates_only=True)


def to_hugging_face(state, parts, *names):
    state = {key: value for key, value in to_microsoft(state).items() if not key.startswith("head.")}
    return renamed(
        apart(state, "blocks", *parts),
        (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^layers", "encoder.layers"),
        *names,
    )


class SwinContract(LayoutContract):
    """What `LayoutContract` tests, for a small Swin."""

    def backbone(self):
        return swin()

    def test_a_tensor_of_one_block_that_is_missing_is_an_error(self):
        state = self.checkpoint()
        broken = next(
            key for key in state if re.search(r"2\.blocks\.1\.(mlp\.fc2|ffn\.layers\.1|output\.dense)", key)
        )
        del state[broken]
        with pytest.raises(CheckpointError, match=r"layers_2\.blocks\.1\.mlp\.fc2\.(weight|bias): missing"):
            load_weights(swin(), state)

    def test_dense_weights_are_split_among_experts(self):
        moe = swin(experts=("a", "b"), expert_channels=32)
        assert load_weights(moe, self.checkpoint()).backbone_share == 1.0

    @pytest.mark.parametrize("name", ["ape", "q_norm"])
    def test_what_would_change_the_features_is_refused(self, name):
        state = self.checkpoint()
        key = next(key for key in state if ("embed" if name == "ape" else ".blocks.0.") in key)
        added = {
            "ape": re.sub(r"(patch_embed|embeddings)\..*", "absolute_pos_embed", key),
            "q_norm": re.sub(r"(blocks\.0)\..*", r"\1.attn.q_norm.weight", key),
        }[name]
        with pytest.raises(CheckpointError, match="which Swin does not have; it looks like a Swin"):
            load_weights(swin(), state | {added: torch.zeros(4)})


class TestTimmSwin(SwinContract):
    key = "timm-swin"

    def checkpoint(self):
        return timm_swin().state_dict()


class TestMicrosoftSwin(SwinContract):
    key = "swin"

    def checkpoint(self):
        return to_microsoft(timm_swin().state_dict())


class TestOpenMMLabSwin(SwinContract):
    key = "mmseg-swin"

    def checkpoint(self):
        return {f"backbone.{key}": value for key, value in mmseg_swin().state_dict().items()}


class TestHuggingFaceSwin(SwinContract):
    key = "huggingface-swin"

    def checkpoint(self):
        state = to_hugging_face(
            timm_swin().state_dict(),
            [f"attention.self.{part}" for part in ("query", "key", "value")],
            (r"\.attn\.(relative.*)", r".attention.self.\1"),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        )
        return {f"swin.{key}": value for key, value in state.items()}


class TestHuggingFaceSwin5(SwinContract):
    key = "huggingface5-swin"

    def checkpoint(self):
        return to_hugging_face(
            timm_swin().state_dict(),
            [f"attention.{part}_proj" for part in "qkv"],
            (r"\.attn\.(relative.*)", r".attention.relative_position_bias.\1"),
            (r"\.attn\.proj\.", ".attention.o_proj."),
        )


# -- features


def mmseg_swin():
    network = MMSegSwin(
        embed_dims=SHAPE["embed_dim"],
        depths=SHAPE["depths"],
        num_heads=SHAPE["num_heads"],
        window_size=WINDOW,
    )
    drawn(network)
    network.train(False)
    return network


def assert_features(backbone, expected, images, norms=None):
    maps = backbone.eval()(images)
    for index, (ours, theirs) in enumerate(zip(maps, expected, strict=True)):
        normed = ours if norms is None else norms[index](ours.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZE, SIZE + 32)


@torch.no_grad()
@pytest.mark.parametrize("features", [False, True])
def test_names_of_the_whole_network_and_of_its_features(features, images):
    network, backbone = timm_swin(features), swin()
    load_weights(backbone, network.state_dict())
    expected = (
        stages_of(network, images) if not features else [x.permute(0, 3, 1, 2) for x in network(images)]
    )
    assert_features(backbone, expected, images)


@torch.no_grad()
def test_simmim_and_gfm_with_windows_of_their_own(images):
    """Their files hold a decoder, GFM's also a teacher, and windows have 6 patches a side."""
    network = timm_swin(window=6)
    checkpoint = gfm(network.state_dict())
    six = swin(replace(SMALL, options={**SMALL.options, "window_size": 6}))
    report = load_weights(six, checkpoint)
    assert {"decoder.0.weight", "projector.weight", "teacher.patch_embed.proj.weight"} <= set(
        report.unexpected
    )
    assert_features(six, stages_of(network, images), images)
    seven = swin(replace(SMALL, options={**SMALL.options, "window_size": 7}))
    report = load_weights(seven, checkpoint)
    assert "windows of 6 to 7" in report.table() and report.backbone_share == 1.0


@torch.no_grad()
def test_openmmlab_merges_channels_in_another_order(images):
    network, backbone = mmseg_swin(), swin()
    load_weights(backbone, network.state_dict())
    assert_features(backbone, network(images), images, [getattr(network, f"norm{i}") for i in range(4)])


def hugging_face_swin():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=SIZE,
        embed_dim=SHAPE["embed_dim"],
        depths=SHAPE["depths"],
        num_heads=SHAPE["num_heads"],
        window_size=WINDOW,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return drawn(transformers.SwinBackbone(config))


@torch.no_grad()
@pytest.mark.parametrize("stored", [False, True])
def test_hugging_face_in_memory_and_in_files(stored, tmp_path):
    network, backbone, images = hugging_face_swin(), swin(), torch.randn(2, 3, SIZE, SIZE)
    source = network.state_dict()
    if stored:
        network.save_pretrained(tmp_path)
        source = tmp_path / "model.safetensors"
    report = load_weights(backbone, source)
    assert report.layout == "Hugging Face Swin" and report.backbone_share == 1.0
    norms = [network.hidden_states_norms[f"stage{i}"] for i in range(1, 5)]
    assert_features(backbone, network(images).feature_maps, images, norms)


@torch.no_grad()
@pytest.mark.parametrize("row", [SMALL, derive("test_convnext")], ids=["swin", "convnext"])
def test_timm_computes_the_same_with_what_is_written(row, images):
    model = drawn(build_segmentor(row, {"a": 3}, SIZE, channels=8))
    written = get_layout("timm").from_ours(convert(model.state_dict()))
    network = timm.create_model(row.timm, features_only=True, **row.options).eval()
    network.load_state_dict(written.state)  # strict: nothing is missing, nothing unexpected
    nhwc = network.output_fmt == "NHWC"
    assert_features(model.backbone, [x.permute(0, 3, 1, 2) if nhwc else x for x in network(images)], images)
    assert {key.partition(".")[0] for key in written.left_out} == {"heads"}


def test_experts_have_no_place_in_files_for_timm():
    state = swin(experts=("a", "b"), expert_channels=32).state_dict()
    with pytest.raises(CheckpointError, match="has no experts, but the backbone has some for a, b"):
        get_layout("timm").from_ours(convert(state))


# -- bad input


def test_an_incomplete_attention_names_what_is_missing():
    state = TestHuggingFaceSwin().checkpoint()
    del state["swin.encoder.layers.1.blocks.0.attention.self.key.bias"]
    with pytest.raises(CheckpointError, match=r"layers_1\.blocks\.0\.attn\.key\.bias missing beside"):
        load_weights(swin(), state)


def test_patch_merging_of_other_patches_is_an_error():
    state = TestOpenMMLabSwin().checkpoint()
    state["backbone.stages.0.downsample.norm.weight"] = torch.zeros(62)
    with pytest.raises(CheckpointError, match="patch merging of 62 channels"):
        load_weights(swin(), state)


def test_swin_v2_is_refused_by_name():
    state = timm.create_model("swinv2_cr_tiny_224", embed_dim=16, num_heads=(1, 2, 2, 2)).state_dict()
    state = {key.replace("stages", "layers"): value for key, value in state.items()}
    state["layers.0.blocks.0.attn.cpb_mlp.0.weight"] = torch.zeros(4, 2)
    with pytest.raises(CheckpointError, match="it looks like Swin Transformer V2"):
        load_weights(swin(), state)


def test_weights_of_another_size_name_it():
    with pytest.raises(CheckpointError, match="choose swin_s as the backbone"):
        load_weights(swin(), timm.create_model("swin_small_patch4_window7_224", num_classes=0).state_dict())
