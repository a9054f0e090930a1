"""Containers and prefixes around weights: all layouts under all of them, and which weights are preferred."""

import pytest
import torch

from s5.backbones.vit import ViT
from s5.checkpoints.layouts import convert
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.checkpoints import test_layout_contract as contracts
from tests.helpers.trained_models import to_published
from tests.helpers.vit_checkpoints import SIZE, TINY, WIDTH


def own():
    return build_segmentor(TINY, {"a": 3, "b": 2}, SIZE, channels=8).state_dict()


def moe():
    four = {"vaihingen": 5, "potsdam": 5, "openearthmap": 9, "loveda": 7}
    return build_segmentor(TINY, four, SIZE, channels=8, expert_channels=8).state_dict()


FILES = {
    "S5": own,
    "S5, backbone": lambda: ViT(TINY, SIZE).state_dict(),
    "published S4P": lambda: contracts.TestPublished().checkpoint(),
    "published S4P, backbone": lambda: to_published(ViT(TINY, SIZE).state_dict()),
    "published MoE-MDF": lambda: to_published(moe()),
    "published detection": lambda: contracts.TestPublishedDetection().checkpoint(),
    "timm": lambda: contracts.TestTimm().checkpoint(),
    "MAE-pytorch": lambda: contracts.TestUnofficialMAE().checkpoint(),
    "mmseg": lambda: contracts.TestMMSegmentation().checkpoint(),
    "mmpretrain": lambda: contracts.TestMMPretrain().checkpoint(),
    "ViTModel": lambda: contracts.TestHuggingFace().checkpoint(),
    "ViTModel in memory": lambda: contracts.TestHuggingFace5().checkpoint(),
}


def under(*prefixes):
    """Add the same prefix to all keys."""
    return lambda state: {"".join(prefixes) + key: value for key, value in state.items()}


AROUND = {
    "DDP": lambda state: {"state_dict": under("module.")(state)},
    "torch.compile": lambda state: {"model": under("_orig_mod.")(state)},
    "DDP and torch.compile": under("module.", "_orig_mod."),
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.16", "param_shapes": [], "optimizer": None},
    "Lightning": lambda state: {
        "state_dict": under("model.")(state),
        "pytorch-lightning_version": "2.5.0",
        "loops": {},
        "optimizer_states": [],
    },
    "Lightning, net": lambda state: {"state_dict": under("net.")(state), "hyper_parameters": {"lr": 1}},
    "EMA of timm": lambda state: {"state_dict": zeros(state), "state_dict_ema": under("module.")(state)},
    "EMA of DeiT and ConvNeXt": lambda state: {"model": zeros(state), "model_ema": state, "args": {}},
    "no EMA in spite of the key": lambda state: {"model": state, "model_ema": None, "state_dict_ema": {}},
    "EMA of mmengine": lambda state: {"state_dict": state, "ema_state_dict": under("module.")(zeros(state))},
    "EMA alone": lambda state: {"ema_state_dict": under("module.")(state)},
    "self-distillation": lambda state: {"student": under("module.")(zeros(state)), "teacher": state},
}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("file", FILES)
def test_every_layout_is_read_under_every_prefix(file, around):
    state = FILES[file]()
    plain, wrapped = (convert(x, ("dior", "dota")) for x in (state, AROUND[around](state)))
    assert wrapped.layout == plain.layout and wrapped.unused == plain.unused
    assert wrapped.backbone.keys() == plain.backbone.keys() and wrapped.heads.keys() == plain.heads.keys()
    assert all(torch.equal(value, plain.backbone[key]) for key, value in wrapped.backbone.items())
    for task, head in wrapped.heads.items():
        assert all(torch.equal(value, plain.heads[task][key]) for key, value in head.items())


@pytest.mark.parametrize(
    ("around", "note"),
    [
        ("EMA of timm", "averaged weights (state_dict_ema) taken; the file also has state_dict"),
        ("EMA of DeiT and ConvNeXt", "averaged weights (model_ema) taken; the file also has model"),
        ("self-distillation", "averaged weights (teacher) taken; the file also has student"),
        ("EMA of mmengine", None),
        ("no EMA in spite of the key", None),
    ],
)
def test_a_choice_between_weights_is_reported(around, note):
    notes = load_weights(ViT(TINY, SIZE), AROUND[around](FILES["timm"]())).notes
    assert notes == ((note,) if note else ())


@pytest.mark.parametrize("prefix", ["vit.", "deit.", "model.vit.", "encoder.", "backbone."])
@pytest.mark.parametrize("contract", [contracts.TestHuggingFace, contracts.TestHuggingFace5])
def test_models_of_transformers_that_contain_a_vit(contract, prefix):
    """`ViTForImageClassification`, `ViTMAEForPreTraining`, `DeiTForMaskedImageModeling` and the like."""
    state = contract().checkpoint()
    around = {f"decoder.{key}": torch.zeros(1) for key in ("mask_token", "decoder_norm.weight")}
    report = load_weights(
        ViT(TINY, SIZE), under(prefix)(state) | {"classifier.weight": torch.zeros(2)} | around
    )
    assert report.backbone_share == 1.0 and "classifier.weight" in report.unexpected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_is_reported(dtype):
    state = {key: value.to(dtype) for key, value in FILES["timm"]().items()}
    vit = ViT(TINY, 2 * SIZE)
    notes = load_weights(vit, state).notes
    name = str(dtype).removeprefix("torch.")
    assert any(note.endswith(f"tensors of the backbone converted from {name} to float32") for note in notes)
    assert all(parameter.dtype == torch.float32 for parameter in vit.parameters())
    # The positional embedding is resampled after the conversion.
    assert not torch.equal(vit.pos_embed, vit.pos_embed.to(dtype).float())


def test_a_shard_of_deepspeed_is_named():
    empty = {key: torch.empty(0) for key in FILES["timm"]()}  # as ZeRO stage 3 leaves them
    message = "no weights: .*it looks like a part of a DeepSpeed ZeRO checkpoint: zero_to_fp32.py"
    with pytest.raises(CheckpointError, match=message):
        convert({"module": empty, "ds_version": "0.16", "ds_config": {"zero_optimization": {}}})
    with pytest.raises(CheckpointError, match=message):
        convert({"optimizer_state_dict": {"zero_stage": 2, "partition_count": 8}, "ds_config": {}})


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
        {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    ],
)
def test_the_state_of_an_optimizer_is_named(checkpoint):
    with pytest.raises(CheckpointError, match="no weights: .*it looks like the state of an optimizer"):
        convert(checkpoint)


@pytest.mark.parametrize("width", [WIDTH - 1, 2 * WIDTH])
def test_right_names_with_wrong_shapes_name_both(width):
    state = FILES["timm"]()
    state["blocks.2.mlp.fc1.weight"] = torch.zeros(4 * WIDTH, width)
    with pytest.raises(
        CheckpointError, match=rf"blocks\.2\.mlp\.fc1\.weight: \(128, {width}\), in the model \(128, 32\)"
    ):
        load_weights(ViT(TINY, SIZE), state)
