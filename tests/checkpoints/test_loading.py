"""Loading weights into models: the treatment of every tensor, and the report."""

import logging

import pytest
import torch

from s5.backbones.vit import Variant, ViT
from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import save_atomic
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.trained_models import to_published

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))


def segmentor(tasks=None, **options):
    return build_segmentor(TINY, tasks or {"seg": 3}, 64, channels=8, **options)


def mae_state(width=32, depth=4, img_size=64):
    vit = ViT(Variant("mae", width, depth, 4, (0, 1, 2, depth - 1)), img_size)
    state = {k: v for k, v in vit.state_dict().items() if not k.startswith("pyramid.")}
    state["pos_embed"] = torch.cat((torch.zeros(1, 1, width), state["pos_embed"]), dim=1)
    return state | {"norm.weight": torch.ones(width)}


@pytest.mark.parametrize("layout", ["S5", "published S5"])
def test_a_whole_model_is_loaded_entirely(tmp_path, layout):
    source, target = segmentor(), segmentor({"isaid": 3})
    state = source.state_dict() if layout == "S5" else to_published(source.state_dict())
    save_atomic({"state_dict": state}, tmp_path / "whole.pth")
    report = load_weights(target, tmp_path / "whole.pth")
    assert (report.layout, report.missing, report.unexpected, report.misshaped) == (layout, (), (), ())
    assert report.backbone_share == 1.0
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(source.eval()(images), target.eval()(images))


def test_a_backbone_goes_into_a_model_and_a_model_into_a_backbone():
    source = segmentor()
    model = segmentor()
    report = load_weights(model, source.backbone.state_dict())
    assert all(name.startswith("heads.") for name in report.missing)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
    vit = ViT(TINY, 64)
    report = load_weights(vit, source.state_dict())
    assert report.missing == ()
    assert all(name.startswith("heads.seg.") for name in report.unexpected)
    assert torch.equal(vit.pos_embed, source.backbone.pos_embed)


def test_mae_weights_fill_all_but_pyramid_and_heads(caplog):
    model = segmentor()
    with caplog.at_level(logging.INFO):
        report = load_weights(model, {"model": mae_state(img_size=32)})
    assert report.layout == "MAE or timm"
    assert report.backbone_share == 1.0
    assert all(name.startswith(("backbone.pyramid.", "heads.")) for name in report.missing)
    assert report.unexpected == ("norm.weight",)
    assert report.notes == ("positional embedding of 4 entries resampled to 4x4",)
    assert "layout MAE or timm" in caplog.text
    assert "100.0% of the backbone's parameters" in caplog.text
    assert "norm.weight" in caplog.text
    assert "resampled to 4x4" in caplog.text


def test_heads_for_other_classes_are_reported_and_left_as_they_are():
    source, target = segmentor({"isaid": 16}), segmentor({"seg": 3})
    before = target.heads["seg"].classifier.weight.clone()
    report = load_weights(target, source.state_dict())
    assert [name for name, _, _ in report.misshaped] == [
        "heads.seg.classifier.weight",
        "heads.seg.classifier.bias",
    ]
    assert report.misshaped[0][1:] == ((16, 8, 1, 1), (3, 8, 1, 1))
    assert "heads.seg.classifier.weight ((16, 8, 1, 1), in the model (3, 8, 1, 1))" in report.table()
    assert torch.equal(target.heads["seg"].classifier.weight, before)
    ours, theirs = (
        m.decode_head.fpn_bottleneck.conv.weight for m in (target.heads["seg"], source.heads["isaid"])
    )
    assert torch.equal(ours, theirs)


def test_heads_are_matched_by_name():
    source, target = segmentor({"a": 3, "b": 3}), segmentor({"b": 3, "c": 3})
    report = load_weights(target, source.state_dict())
    assert torch.equal(target.heads["b"].classifier.weight, source.heads["b"].classifier.weight)
    assert {name.split(".")[1] for name in report.missing} == {"c"}
    assert {name.split(".")[1] for name in report.unexpected} == {"a"}


def test_a_dense_model_starts_an_moe_model_that_computes_the_same():
    source = segmentor({"isaid": 16}).eval()
    source.heads["isaid"].decode_head.fpn_bottleneck.bn.running_mean.fill_(0.3)
    target = segmentor({"a": 3, "b": 4}, expert_channels=8).eval()
    report = load_weights(target, source.state_dict())
    assert report.backbone_share == 1.0
    assert sorted(report.missing) == sorted(
        f"heads.{t}.classifier.{n}" for t in "ab" for n in ("weight", "bias")
    )
    assert "dense FFNs split: last 8 channels" in report.table()
    features = source.encode(images := torch.randn(2, 3, 64, 64))
    for one, other in zip(features, target.encode(images, {"a": 1, "b": 1}), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for head in target.heads.values():
        assert torch.equal(
            head.decode_head.fpn_bottleneck.bn.running_mean,
            source.heads["isaid"].decode_head.fpn_bottleneck.bn.running_mean,
        )


def test_decoder_of_a_lone_head_serves_the_other_tasks_too():
    source, target = segmentor({"a": 3}).eval(), segmentor({"a": 3, "b": 4}, expert_channels=8)
    report = load_weights(target, source.state_dict())
    assert report.missing == ("heads.b.classifier.weight", "heads.b.classifier.bias")
    for task in "ab":
        ours, theirs = target.heads[task].decode_head, source.heads["a"].decode_head
        assert torch.equal(ours.fpn_bottleneck.conv.weight, theirs.fpn_bottleneck.conv.weight)


@pytest.mark.parametrize(("width", "depth"), [(48, 4), (32, 6)])
def test_another_architecture_is_an_error_with_both_sizes(width, depth):
    message = f"width {width}, depth {depth}, patch 16 in the checkpoint, width 32, depth 4, patch 16 in tiny"
    with pytest.raises(CheckpointError, match=message):
        load_weights(segmentor(), mae_state(width, depth))


def lost(state, name):
    return {key: value for key, value in state.items() if key != name}


def reshaped(state, name):
    return state | {name: torch.zeros(*state[name].shape, 2)}


def integer(state, name):
    return state | {name: state[name].to(torch.int8)}


DECISIVE = ["patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"] + [
    f"blocks.{block}.{layer}.{kind}"
    for block, layer in [
        (0, "norm1"),
        (1, "attn.qkv"),
        (2, "attn.proj"),
        (2, "norm2"),
        (3, "mlp.fc1"),
        (3, "mlp.fc2"),
    ]
    for kind in ("weight", "bias")
]


@pytest.mark.parametrize("break_it", [lost, reshaped, integer])
@pytest.mark.parametrize("name", DECISIVE)
def test_a_decisive_tensor_that_does_not_fit_is_an_error_and_changes_nothing(tmp_path, name, break_it):
    state = segmentor().backbone.state_dict()
    save_atomic(break_it(state, name), tmp_path / "partial.pth")
    model = segmentor()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"partial\.pth: ") as error:
        load_weights(model, tmp_path / "partial.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(error.value)
    if (name, break_it) == ("patch_embed.proj.weight", lost):
        return  # without it, it is not even recognised
    if (name, break_it) == ("pos_embed", lost):
        assert "no positional embedding" in message
    elif name == "patch_embed.proj.weight" and break_it is reshaped:
        assert "(32, 3, 16, 16, 2)" in message
    elif name == "pos_embed" and break_it is reshaped:
        assert "positional embedding has the shape (1, 16, 32, 2)" in message
    else:
        assert f"{name}: " in message and "layout S5" in message
        assert str(tuple(state[name].shape)) in message or break_it is integer


def test_a_tensor_of_a_block_that_only_mae_weights_lack_is_an_error_whatever_the_share():
    state = mae_state()
    del state["blocks.1.norm1.bias"]  # one part in a thousand
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm1\.bias: missing, in the model \(32,\)"):
        load_weights(segmentor(), state)


@pytest.mark.parametrize("part", ["fc2", "experts.a", "experts.b"])
def test_a_part_of_the_experts_that_is_missing_is_an_error(part):
    state = segmentor({"a": 3, "b": 4}, expert_channels=8).state_dict()
    del state[f"backbone.blocks.0.mlp.{part}.bias"]
    with pytest.raises(CheckpointError, match=rf"blocks\.0\.mlp\.{part}\.bias: missing"):
        load_weights(segmentor({"a": 3, "b": 4}, expert_channels=8), state)


def test_half_of_a_pyramid_is_an_error_and_none_is_refused_by_evaluation_alone():
    whole = segmentor().state_dict()
    half = {key: value for key, value in whole.items() if "pyramid.up2" not in key}
    with pytest.raises(CheckpointError, match=r"pyramid\.up2\.weight: missing"):
        load_weights(segmentor(), half)
    report = load_weights(segmentor(), {key: value for key, value in whole.items() if "pyramid" not in key})
    with pytest.raises(CheckpointError, match=r"no matching decoder .*backbone\.pyramid"):
        report.require_heads()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_point_type_are_loaded(dtype):
    state = {key: value.to(dtype) for key, value in mae_state(img_size=32).items()}
    model = segmentor()
    load_weights(model, state)
    loaded = model.backbone.blocks[1].mlp.fc1.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, state["blocks.1.mlp.fc1.weight"].float())


def of_channels(channels):
    return mae_state() | {"patch_embed.proj.weight": torch.randn(32, channels, 16, 16)}


@pytest.mark.parametrize(
    ("channels", "hint"),
    [
        (13, r"13 channels.*--init-bands R,G,B.*4,3,2 for Sentinel-2"),
        (4, r"4 channels.*1-based.* with --init-bands R,G,B.*3,2,1"),
        (1, r"single-band.*--init-bands 1,1,1"),
    ],
)
def test_a_patch_embedding_of_other_bands_is_an_error_that_says_how_to_choose(channels, hint):
    shapes = (
        rf"patch_embed\.proj\.weight: \(32, {channels}, 16, 16\), in the model \(32, 3, 16, 16\)\n.*{hint}"
    )
    with pytest.raises(CheckpointError, match=shapes):
        load_weights(segmentor(), of_channels(channels))


@pytest.mark.parametrize(
    ("channels", "bands"), [(13, (4, 3, 2)), (4, (3, 2, 1)), (3, (3, 2, 1)), (3, (1, 2, 3))]
)
def test_bands_are_channels_of_the_checkpoint_counted_from_1(channels, bands):
    state, model = of_channels(channels), segmentor()
    report = load_weights(model, state, bands=bands)
    for ours, theirs in enumerate(bands):
        weight = model.backbone.patch_embed.proj.weight[:, ours]
        assert torch.equal(weight, state["patch_embed.proj.weight"][:, theirs - 1])
    assert report.backbone_share == 1.0
    assert f"red, green and blue are channels {', '.join(map(str, bands))} of {channels}" in report.table()


@pytest.mark.parametrize(("channels", "bands"), [(1, (1, 1, 1)), (2, (2, 2, 1))])
def test_a_band_taken_more_than_once_gives_grey_images_what_it_gave(channels, bands):
    state, vit = of_channels(channels), ViT(TINY, 64)
    load_weights(vit, state, bands=bands)
    grey = torch.randn(2, 1, 64, 64)
    chosen = state["patch_embed.proj.weight"][:, sorted({band - 1 for band in bands})].sum(1, keepdim=True)
    theirs = torch.nn.functional.conv2d(grey, chosen, state["patch_embed.proj.bias"], stride=16)
    ours = vit.patch_embed(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("channels", "message"), [(3, r"init_bands 5,3,2: .* has 3 channels, 1 to 3"), (1, "one channel: 1,1,1")]
)
def test_a_band_that_the_checkpoint_lacks_is_an_error(channels, message):
    with pytest.raises(CheckpointError, match=message):
        load_weights(segmentor(), of_channels(channels), bands=(5, 3, 2))


def test_an_unrecognised_file_is_named(tmp_path):
    save_atomic({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="resnet.pth: unrecognised checkpoint, with keys conv1.weight"):
        load_weights(segmentor(), tmp_path / "resnet.pth")


def test_long_lists_of_names_are_shortened():
    table = load_weights(segmentor(), segmentor().backbone.state_dict()).table()
    assert "and 70 more" in table
    assert max(len(line) for line in table.splitlines()) < 500
