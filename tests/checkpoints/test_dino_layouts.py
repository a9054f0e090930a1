"""Layouts of DINOv2, DINOv3 and ViTs of timm: the contract, and features equal to those of other projects."""

import re

import pytest
import torch
from timm.models import eva, vision_transformer

from s5.backbones import Backbone, StateDict, create_backbone
from s5.checkpoints.layouts import convert, get_layout
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.checkpoints import test_layout_contract
from tests.helpers import timm_vits
from tests.helpers.timm_vits import DEPTH, HEADS, TINY, WIDTH, drawn_timm

SIZE = 64


class DinoContract(test_layout_contract.LayoutContract):
    """The contract, with a small ViT of timm."""

    kind: str

    def network(self) -> Backbone:
        return create_backbone(TINY[self.kind], SIZE)

    def test_it_fills_a_backbone_but_for_what_it_lacks(self) -> None:
        network = self.network()
        report = load_weights(network, self.checkpoint())
        assert report.layout == self.layout.name and report.backbone_share == 1.0
        assert all(name.startswith("pyramid.") for name in report.missing)

    def test_a_tensor_of_one_block_that_is_missing_is_an_error(self) -> None:
        state = self.checkpoint()
        del state[next(key for key in state if re.search(r"\.2\..*norm2\.bias", key))]
        with pytest.raises(CheckpointError, match=r"blocks\.2\.norm2\.bias: missing"):
            load_weights(self.network(), state)

    def test_an_unknown_layer_of_a_block_is_an_error_with_the_key(self) -> None:
        state = self.checkpoint()
        key = next(key for key in state if re.search(r"\.2\..*norm2\.bias", key)).replace(
            "norm2.bias", "extra"
        )
        with pytest.raises(CheckpointError, match=rf"{re.escape(key.removeprefix('model.'))}"):
            load_weights(self.network(), state | {key: torch.ones(1)})


class TestTimmViT(DinoContract):
    key, kind = "timm-vit", "dinov2_reg"

    def checkpoint(self) -> StateDict:
        return drawn_timm(self.kind, SIZE).state_dict()

    def test_an_unknown_layer_of_a_block_is_an_error_with_the_key(self) -> None:
        """The layout takes any layer; the model does not."""
        state = self.checkpoint() | {"blocks.2.extra": torch.ones(1)}
        with pytest.raises(CheckpointError, match="weights of another architecture"):
            load_weights(self.network(), state)


class TestDinoV2(DinoContract):
    key, kind = "dinov2", "dinov2_g"

    def checkpoint(self) -> StateDict:
        return timm_vits.as_dinov2(drawn_timm(self.kind, SIZE).state_dict())


class TestDinoV3(DinoContract):
    key, kind = "dinov3", "dinov3"

    def checkpoint(self) -> StateDict:
        return timm_vits.as_dinov3(drawn_timm(self.kind, SIZE).state_dict())


class TestHuggingFaceDinoV2(DinoContract):
    key, kind = "huggingface-dinov2", "dinov2_reg"

    def checkpoint(self) -> StateDict:
        return timm_vits.as_hugging_face_dinov2(drawn_timm(self.kind, SIZE).state_dict())


class TestHuggingFaceDinoV3(DinoContract):
    key, kind = "huggingface-dinov3", "dinov3_7b"

    def checkpoint(self) -> StateDict:
        return timm_vits.as_hugging_face_dinov3(drawn_timm(self.kind, SIZE).state_dict())


def tokens(backbone: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Maps (B, C, h, w) before the pyramid."""
    levels: list[torch.Tensor] = []
    backbone.pyramid.register_forward_pre_hook(lambda _, inputs: levels.extend(inputs[0]))
    backbone.eval()(images)
    return levels


FILES = {
    "DINOv2": ("dinov2", timm_vits.as_dinov2),
    "DINOv2 with registers": ("dinov2_reg", timm_vits.as_dinov2),
    "DINOv2 in chunks": ("dinov2", lambda state: timm_vits.as_dinov2(state, chunks=True)),
    "DINOv2 giant": ("dinov2_g", timm_vits.as_dinov2),
    "DINOv3": ("dinov3", timm_vits.as_dinov3),
    "DINOv3 7B": ("dinov3_7b", timm_vits.as_dinov3),
    "HF DINOv2": ("dinov2", timm_vits.as_hugging_face_dinov2),
    "HF DINOv2 giant": ("dinov2_g", timm_vits.as_hugging_face_dinov2),
    "HF DINOv2 giant in memory": ("dinov2_g", lambda s: timm_vits.as_hugging_face_dinov2(s, in_memory=True)),
    "HF DINOv3": ("dinov3", timm_vits.as_hugging_face_dinov3),
    "HF DINOv3 7B": ("dinov3_7b", lambda s: timm_vits.as_hugging_face_dinov3(s, in_memory=True)),
}


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_features_equal_those_of_timm(name: str) -> None:
    kind, stored_as = FILES[name]
    network, images = drawn_timm(kind, SIZE), torch.randn(2, 3, SIZE, SIZE)
    backbone = create_backbone(TINY[kind], SIZE)
    prefixed = {f"backbone.{key}": value for key, value in stored_as(network.state_dict()).items()}
    load_weights(backbone, {"teacher": prefixed})
    expected = network.forward_intermediates(images, indices=4, norm=True, intermediates_only=True)
    for one, other in zip(tokens(backbone, images), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["DINOv2", "DINOv2 with registers", "DINOv2 giant", "DINOv3", "DINOv3 7B"])
def test_timm_reads_the_same_from_files_of_the_original_code(name: str) -> None:
    kind, stored_as = FILES[name]
    network = drawn_timm(kind, SIZE)
    state = stored_as(network.state_dict())
    module = eva if "DINOv3" in name else vision_transformer
    theirs = module.checkpoint_filter_fn(dict(state), network)
    ours = convert(state).backbone
    for key in network.state_dict():
        torch.testing.assert_close(ours[f"body.{key}"], theirs[key], msg=key)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_reg", "dinov2_g", "dinov3", "dinov3_7b"])
@torch.no_grad()
def test_features_equal_those_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "patch_size": 16,
        "image_size": SIZE,
    }
    if kind.startswith("dinov3"):
        hidden, gated = (64, True) if kind == "dinov3_7b" else (4 * WIDTH, False)
        act = "silu" if gated else "gelu"
        config = transformers.DINOv3ViTConfig(
            **sizes, intermediate_size=hidden, use_gated_mlp=gated, num_register_tokens=4, hidden_act=act
        )
        network = transformers.DINOv3ViTModel(config)
    elif kind == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    else:
        config = transformers.Dinov2WithRegistersConfig(
            **sizes, num_register_tokens=4, use_swiglu_ffn=kind == "dinov2_g"
        )
        network = transformers.Dinov2WithRegistersModel(config)
    network.eval()
    for name, parameter in network.named_parameters():
        # DINOv3's biases of queries and values are zero.
        torch.nn.init.normal_(parameter, std=0.3) if not re.search(
            r"[qkv]_proj\.bias", name
        ) else parameter.zero_()
    images = torch.randn(2, 3, SIZE, SIZE)
    backbone = create_backbone(TINY[kind], SIZE)
    load_weights(backbone, network.state_dict())
    last = network(images).last_hidden_state[:, -16:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(tokens(backbone, images)[-1], last, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_timm_computes_the_same_with_what_is_written() -> None:
    segmentor = build_segmentor(TINY["dinov3"], {"a": 3}, SIZE, channels=8)
    written = get_layout("timm-vit").from_ours(convert(segmentor.state_dict()))
    network = drawn_timm("dinov3", SIZE)
    network.load_state_dict(written.state)  # strict
    images = torch.randn(1, 3, SIZE, SIZE)
    expected = network.forward_intermediates(images, indices=4, norm=True, intermediates_only=True)
    for one, other in zip(tokens(segmentor.backbone, images), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert {name.partition(".")[0] for name in written.left_out} == {"pyramid", "heads"}


def test_what_the_layout_of_timm_cannot_hold_is_said() -> None:
    layout = get_layout("timm-vit")
    state = create_backbone(TINY["dinov3"], SIZE, experts=("a", "b"), expert_channels=8).state_dict()
    with pytest.raises(CheckpointError, match="has no experts, but the backbone has some for a, b"):
        layout.from_ours(convert(state))
    with pytest.raises(CheckpointError, match="not a ViT of timm"):
        layout.from_ours(convert(create_backbone("vit_t", SIZE).state_dict()))
