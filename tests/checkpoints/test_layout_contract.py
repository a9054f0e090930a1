"""Contract tests of layouts. For a new layout, add a class with its adapter and a checkpoint."""

import re
from functools import partial

import pytest
import timm
import torch
from mmseg.models.backbones import VisionTransformer as MMSegViT
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from s5.backbones.rvsa import RvsaViT
from s5.backbones.vit import ViT
from s5.checkpoints.layouts import LAYOUTS, convert, get_layout
from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import as_safetensors
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.vit_checkpoints import (
    DEPTH,
    HEADS,
    RVSA,
    SIZE,
    TINY,
    WIDTH,
    drawn,
    to_hugging_face,
    to_hugging_face_5,
    to_mmpretrain,
    tokens,
    with_class_slot,
)

EPS = 1e-5
TIMM = {
    "img_size": SIZE,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": 0,
    "norm_layer": partial(nn.LayerNorm, eps=EPS),
}


def timm_state():
    return drawn(TimmViT(**TIMM)).state_dict()


class LayoutContract:
    """Tests that each layout inherits."""

    key: str
    has_heads = False

    def checkpoint(self):
        """A state dict of the layout, with a backbone like :meth:`backbone`."""
        raise NotImplementedError

    def backbone(self):
        """A ViT of width 32 and depth 4 for images of 64 pixels."""
        return ViT(TINY, SIZE)

    @property
    def layout(self):
        return get_layout(self.key)

    def test_it_is_recognised_among_all_others(self):
        assert convert(self.checkpoint()).layout == self.layout.name
        assert convert({"module": {}, "state_dict": self.checkpoint()}).layout == self.layout.name

    def test_it_fills_a_backbone_but_for_what_it_lacks(self):
        report = load_weights(self.backbone(), self.checkpoint())
        assert report.layout == self.layout.name and report.backbone_share == 1.0
        assert report.layout in report.table()
        assert all(name.startswith(self.layout.lacks) for name in report.missing)

    def test_heads_come_along_where_it_has_them(self):
        assert bool(convert(self.checkpoint()).heads) is self.has_heads

    def test_a_tensor_of_one_block_that_is_missing_is_an_error(self):
        state = self.checkpoint()
        broken = next(
            key
            for key in state
            if re.search(r"\b2\..*(fc2|ffn\.layers\.1|(?<!attention\.)output\.dense)", key)
        )
        del state[broken]
        with pytest.raises(CheckpointError, match=r"blocks\.2\.mlp\.fc2\.(weight|bias): missing"):
            load_weights(self.backbone(), state)
        with pytest.raises(
            CheckpointError, match=r"incomplete: blocks\.2\.mlp\.fc2\.(weight|bias) is missing"
        ):
            get_layout("s5").from_ours(convert(state))

    def test_it_converts_back_to_the_same(self):
        weights = convert(self.checkpoint())
        if self.layout.unwritable:
            with pytest.raises(CheckpointError, match=f"{re.escape(self.layout.name)} cannot be written: "):
                self.layout.from_ours(weights)
            return
        written = self.layout.from_ours(weights)
        back = convert(written.state)
        assert back.layout == self.layout.name
        left = set(written.left_out)
        assert left <= {"cls_token"}
        assert back.backbone.keys() == weights.backbone.keys() - left
        assert back.heads.keys() == weights.heads.keys()
        for key, value in back.backbone.items():
            assert torch.equal(value, weights.backbone[key]), key
        for task, head in back.heads.items():
            assert head.keys() == weights.heads[task].keys()
            assert all(torch.equal(value, weights.heads[task][key]) for key, value in head.items())


class TestS5(LayoutContract):
    key, has_heads = "s5", True

    def checkpoint(self):
        return build_segmentor(TINY, {"a": 3, "b": 2}, SIZE, channels=8).state_dict()


class TestPublished(LayoutContract):
    key, has_heads = "published", True

    def checkpoint(self):
        return self.layout.from_ours(convert(TestS5().checkpoint())).state


class TestPublishedRvsa(LayoutContract):
    key, has_heads = "published-rvsa", True

    def checkpoint(self):
        state = build_segmentor(RVSA, {"a": 3, "b": 2}, SIZE, channels=8).state_dict()
        return get_layout("published").from_ours(convert(state)).state

    def backbone(self):
        return RvsaViT(RVSA, SIZE)

    def test_the_constant_index_is_written(self):
        state = self.checkpoint()
        indices = {key: value for key, value in state.items() if key.endswith("relative_position_index")}
        assert list(indices) == [f"encoder.blocks.{n}.attn.relative_position_index" for n in (0, 2)]
        for index in indices.values():
            assert index.shape == (9, 9) and index.min() == 0 and index.max() == 24


class TestMtp(LayoutContract):
    key = "mtp"

    def checkpoint(self):
        state = TestPublishedRvsa().checkpoint()
        encoder = {f"module.{key}": value for key, value in state.items() if key.startswith("encoder.")}
        heads = {f"module.semseghead_{n}.1.weight": torch.zeros(2, 8, 1, 1) for n in (1, 2, 3)}
        return encoder | heads | {"module.encoder.norm.weight": torch.ones(WIDTH)}

    def backbone(self):
        return RvsaViT(RVSA, SIZE)


class TestPublishedDetection(LayoutContract):
    key, has_heads = "published", True

    def checkpoint(self):
        backbone = ViT(TINY, SIZE, experts=("dior", "dota"), expert_channels=8).state_dict()
        state = {f"backbone.{key}": value for key, value in backbone.items()}
        for task, classes in (("dior", 20), ("dota", 18)):
            state[f"heads.{task}.neck.lateral_convs.0.conv.weight"] = torch.randn(8, WIDTH, 1, 1)
            state[f"heads.{task}.rpn_head.rpn_reg.weight"] = torch.randn(18, 8, 1, 1)
            state[f"heads.{task}.roi_head.bbox_head.fc_cls.weight"] = torch.randn(classes + 1, 8)
            state[f"heads.{task}.roi_head.bbox_head.fc_reg.bias"] = torch.randn(5)
        return self.layout.from_ours(convert(state)).state

    def test_it_fills_a_backbone_but_for_what_it_lacks(self):
        vit = ViT(TINY, SIZE, experts=("dior", "dota"), expert_channels=8)
        report = load_weights(vit, self.checkpoint())
        assert report.missing == () and {name.partition(".")[0] for name in report.unexpected} == {"heads"}

    def test_a_tensor_of_one_block_that_is_missing_is_an_error(self):
        state = self.checkpoint()
        del state["backbone.layers.2.ffn.experts.1.bias"]
        with pytest.raises(CheckpointError, match=r"blocks\.2\.mlp\.experts\.dota\.bias is missing"):
            get_layout("s5").from_ours(convert(state))


class TestTimm(LayoutContract):
    key = "timm"

    def checkpoint(self):
        return timm_state()


class TestSatMAE(LayoutContract):
    key = "satmae"

    def checkpoint(self):
        state = timm_state()
        places, group = state["pos_embed"].split((WIDTH - 8, 8), dim=2)
        more = {
            f"patch_embed.0.proj.{kind}": state.pop(f"patch_embed.proj.{kind}") for kind in ("weight", "bias")
        }
        more["patch_embed.1.proj.weight"] = torch.randn(WIDTH, 2, 16, 16)
        return state | more | {"pos_embed": places, "channel_embed": group[:, :2]}


class TestUnofficialMAE(LayoutContract):
    key = "mae-pytorch"

    def checkpoint(self):
        state = {key: value for key, value in timm_state().items() if key not in ("pos_embed", "cls_token")}
        for key in [key for key in state if key.endswith("qkv.bias")]:
            query, _, values = state.pop(key).chunk(3)
            state |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): values}
        return state


class TestMMSegmentation(LayoutContract):
    key = "mmseg"

    def checkpoint(self):
        sizes = {"img_size": SIZE, "embed_dims": WIDTH, "num_layers": DEPTH, "num_heads": HEADS}
        return drawn(MMSegViT(**sizes)).state_dict()


class TestMMPretrain(LayoutContract):
    key = "mmpretrain"

    def checkpoint(self):
        return to_mmpretrain(timm_state())


class TestHuggingFace(LayoutContract):
    key = "huggingface"

    def checkpoint(self):
        return to_hugging_face(timm_state()) | {"embeddings.cls_token": torch.zeros(1, 1, WIDTH)}


class TestHuggingFace5(LayoutContract):
    key = "huggingface5"

    def checkpoint(self):
        return to_hugging_face_5(timm_state()) | {"embeddings.cls_token": torch.zeros(1, 1, WIDTH)}


def test_every_layout_has_a_contract_and_a_key_of_its_own():
    from tests.checkpoints import test_dino_layouts, test_swin_layouts

    modules = (__name__, test_dino_layouts.__name__, test_swin_layouts.__name__)
    keys = [layout.key for layout in LAYOUTS]
    tested = {contract.key for contract in _contracts(LayoutContract) if contract.__module__ in modules}
    assert sorted(keys) == sorted(tested)


def _contracts(base):
    for contract in base.__subclasses__():
        yield from [contract] if hasattr(contract, "key") else ()
        yield from _contracts(contract)


def test_an_unknown_layout_is_an_error_that_lists_all():
    with pytest.raises(CheckpointError, match="unknown layout 'keras'; available: s5, published"):
        get_layout("keras")
    with pytest.raises(CheckpointError, match="unknown layout 'tim'; .*did you mean 'timm'"):
        get_layout("tim")


def trained():
    """A model with experts, and one without, whose tensors all matter."""
    return drawn(build_segmentor(TINY, {"a": 3}, SIZE, channels=8))


def test_timm_computes_the_same_with_what_is_written():
    model, images = trained(), torch.randn(2, 3, SIZE, SIZE)
    written = get_layout("timm").from_ours(convert(model.state_dict()))
    network = TimmViT(**TIMM, class_token=False, global_pool="", final_norm=False).eval()
    network.load_state_dict(written.state)  # strict: nothing is missing, nothing unexpected
    ours = tokens(model.backbone, model.backbone.blocks, images)
    for one, other in zip(ours, tokens(network, network.blocks, images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert {name.partition(".")[0] for name in written.left_out} == {"cls_token", "pyramid", "heads"}


def test_timm_gives_the_same_maps_of_a_written_file(tmp_path):
    """As `usage` says, with a file and `features_only`."""
    model, images = trained(), torch.randn(2, 3, SIZE, SIZE)
    written = get_layout("timm").from_ours(convert(model.state_dict()))
    (tmp_path / "timm.safetensors").write_bytes(as_safetensors(written.state, None))
    network = timm.create_model(
        "vit_base_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "timm.safetensors")},
        features_only=True,
        out_indices=tuple(range(DEPTH)),
        class_token=False,
        global_pool="",
        final_norm=False,
        **{key: value for key, value in TIMM.items() if key != "num_classes"},
    ).eval()
    ours = tokens(model.backbone, model.backbone.blocks, images)
    for one, other in zip(ours, network(images), strict=True):
        torch.testing.assert_close(one, other.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_mmsegmentation_computes_the_same_with_what_is_written():
    model, images = trained(), torch.randn(2, 3, SIZE, SIZE)
    written = get_layout("mmseg").from_ours(convert(model.state_dict()))
    network = MMSegViT(
        img_size=SIZE,
        embed_dims=WIDTH,
        num_layers=DEPTH,
        num_heads=HEADS,
        out_indices=list(range(DEPTH)),
        with_cls_token=False,
        patch_bias=True,
        norm_cfg={"type": "LN", "eps": EPS},
    )
    network.load_state_dict(written.state)
    network.train(False)
    ours = tokens(model.backbone, model.backbone.blocks, images)
    for one, other in zip(ours, network(images), strict=True):
        torch.testing.assert_close(one, other.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["timm", "mmseg", "mmpretrain"])
def test_experts_have_no_place_in_other_layouts(key):
    state = ViT(TINY, SIZE, experts=("a", "b"), expert_channels=8).state_dict()
    with pytest.raises(CheckpointError, match="has no experts, but the backbone has some for a, b"):
        get_layout(key).from_ours(convert(state))


@pytest.mark.parametrize(("size", "entries"), [((64, 96), 24), ((32, 80), 10)])  # 10 is 1 and a square
def test_a_positional_embedding_of_no_square_is_not_written_for_others(size, entries):
    state = ViT(TINY, size).state_dict()
    with pytest.raises(CheckpointError, match=f"positional embedding of {entries} entries: not a square"):
        get_layout("timm").from_ours(convert(state))


@pytest.mark.parametrize("key", ["published", "mmseg"])
def test_a_backbone_that_is_no_plain_vit_is_not_written_for_plain_vits(key):
    state = {"backbone.body.stem.weight": torch.zeros(1), "heads.a.classifier.weight": torch.ones(1)}
    weights = convert(state)
    assert weights.layout == "S5" and set(weights.heads) == {"a"}
    assert get_layout("s5").from_ours(weights).state == state
    with pytest.raises(CheckpointError, match="not a plain ViT"):
        get_layout(key).from_ours(weights)


@pytest.mark.parametrize("key", ["published", "timm", "mmseg"])
def test_a_vit_with_another_layer_is_only_written_as_s5(key):
    state = ViT(TINY, SIZE).state_dict() | {"blocks.1.attn.gate.weight": torch.ones(4)}
    assert get_layout("s5").from_ours(convert(state)).state == state
    with pytest.raises(CheckpointError, match=r"has 'blocks\.1\.attn\.gate\.weight', for which"):
        get_layout(key).from_ours(convert(state))


def test_a_backbone_of_another_architecture_is_recognised_by_its_metadata():
    assert convert({"body.patch_embed.proj.weight": torch.zeros(1)}).layout == "S5"  # as of timm models
    content = {"state_dict": {"stem.weight": torch.zeros(1)}, "meta": {"backbone": "conv", "img_size": 64}}
    assert convert(content).layout == "S5"
    with pytest.raises(CheckpointError, match="unrecognised"):
        convert(content | {"meta": {"CLASSES": ("a",)}})


def test_own_weights_with_a_layer_that_the_model_lacks_are_an_error():
    state = ViT(TINY, SIZE).state_dict() | {"blocks.1.attn.scale": torch.ones(4)}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.scale: not in the model"):
        load_weights(ViT(TINY, SIZE), state)


def test_a_class_slot_of_zeros_is_written_where_the_layout_always_has_one():
    weights = convert(with_class_slot(timm_state() | {"pos_embed": torch.randn(1, 16, WIDTH)}))
    table = get_layout("mmseg").from_ours(weights).state["pos_embed"]
    assert torch.equal(table[:, 1:], weights.backbone["pos_embed"]) and not table[:, 0].any()
