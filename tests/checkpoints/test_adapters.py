"""LoRA adapters in checkpoints: loading into models with other tasks, and merging on conversion."""

import logging
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from s5.backbones import Lora, adapter_names
from s5.backbones.vit import Variant
from s5.checkpoints.layouts import convert, get_layout
from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import read_checkpoint, save_atomic
from s5.convert import convert_file, main
from s5.errors import CheckpointError
from s5.segmentation.segmentor import Segmentor, build_segmentor

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))
LORA = Lora(2, 5.0)
PLAIN = {
    "class_token": False,
    "global_pool": "",
    "final_norm": False,
    "norm_layer": partial(torch.nn.LayerNorm, eps=1e-5),
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def segmentor(*tasks: str, lora: Lora | None = LORA, **options) -> Segmentor:
    model = build_segmentor(TINY, dict.fromkeys(tasks, 3), 64, channels=8, lora=lora, **options).eval()
    for name, parameter in model.named_parameters():
        if adapter_names([name]):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def meta(*tasks: str, backbone: str = "tiny") -> dict:
    return {
        "backbone": backbone,
        "img_size": 64,
        "expert_channels": 8 if backbone.endswith("_moe") else 0,
        "tasks": {task: ["x", "y", "z"] for task in tasks},
        "inference": {task: {"mode": "whole"} for task in tasks},
        "iteration": 6,
    }


def saved(path: Path, model: Segmentor, backbone: str = "tiny") -> Path:
    save_atomic({"state_dict": model.state_dict(), "meta": meta(*model.tasks, backbone=backbone)}, path)
    return path


@torch.no_grad()
def test_adapters_are_loaded_by_task_and_those_of_other_tasks_left_out() -> None:
    source, target = segmentor("a", "b", "c"), segmentor("c", "a")
    report = load_weights(target, source.state_dict())
    assert not report.missing and report.backbone_share == 1
    assert "LoRA adapters of b left out" in report.notes
    for task in ("a", "c"):
        assert torch.equal(target(IMAGES, task), source(IMAGES, task))


def test_a_base_model_fits_a_model_with_adapters(caplog: pytest.LogCaptureFixture) -> None:
    source, target = segmentor("seg", lora=None), segmentor("a", "b")
    before = target.state_dict()["backbone.blocks.0.attn.qkv.lora.a.a"].clone()
    with caplog.at_level(logging.INFO):
        report = load_weights(target, source.backbone.state_dict())
    assert "no LoRA adapters in the checkpoint: those of the model change nothing" in caplog.text
    assert report.backbone_share == 1
    assert torch.equal(target.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
    assert torch.equal(target.state_dict()["backbone.blocks.0.attn.qkv.lora.a.a"], before)


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA])
def test_adapters_of_a_single_other_task_are_merged(lora: Lora | None) -> None:
    """A model with LoRA of S4P is a dense model to whatever starts from it."""
    source, target = (
        segmentor("s4p"),
        build_segmentor(TINY, {"a": 3, "b": 2}, 64, channels=8, lora=lora).eval(),
    )
    report = load_weights(target, source.backbone.state_dict())
    assert "LoRA adapters of s4p merged into the weights" in report.notes
    for one, other in zip(target.backbone(IMAGES, {"a": 2}), source.backbone(IMAGES), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tasks", "lora", "message"),
    [
        (("c", "d"), LORA, r"adapters for a, b, the model has for c, d; .*s5.convert FILE NEW.pth .*--task"),
        (("a", "b"), None, r"adapters for a, b, the model has none \(model.finetune\).*--task NAME"),
        (("a", "c"), LORA, r"adapters for a, b, but none for c, which the model has; train only tasks"),
        (("a", "b"), Lora(4, 10.0), r"rank 2 in the checkpoint, 4 in the model: set model.lora.rank=2"),
        (("a", "b"), Lora(2, 4.0), r"alpha 5 in the checkpoint, 4 in the model: set model.lora.alpha=5"),
        (
            ("a", "b"),
            Lora(2, 5.0, ("attn.qkv",)),
            r"of attn.qkv, attn.proj in the .*set model.lora.targets=\[attn.qkv, attn.proj\]",
        ),
    ],
)
def test_adapters_that_do_not_fit(tasks: tuple[str, ...], lora: Lora | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(segmentor(*tasks, lora=lora), segmentor("a", "b").state_dict())


def test_an_adapter_with_a_missing_factor_is_an_error() -> None:
    state = segmentor("a", "b").state_dict()
    del state["backbone.blocks.2.attn.proj.lora.b.a"]
    with pytest.raises(CheckpointError, match=r"blocks.2.attn.proj.lora.b.a: missing"):
        load_weights(segmentor("a", "b"), state)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["s5", "timm", "published"])
@pytest.mark.parametrize("tasks", [("s4p",), ("a", "b")])
def test_a_task_is_merged_into_plain_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture, layout: str, tasks: tuple[str, ...]
) -> None:
    source, task = segmentor(*tasks), tasks[-1]
    expected = source(IMAGES, task)
    chosen = ["--task", task] if len(tasks) > 1 else []
    args = [str(saved(tmp_path / "in.pth", source)), str(tmp_path / "out.pth"), "--to", layout]
    assert main([*args, *chosen]) == 0
    printed = capsys.readouterr().out
    assert f"note: LoRA adapters of {task} merged into the weights" in printed
    listed = len(tasks) > 1 and layout != "timm"  # which leaves out more, and the list is shortened
    assert ("blocks.0.attn.qkv.lora.a.a" in printed) == listed
    written = read_checkpoint(tmp_path / "out.pth")
    if layout == "timm":
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=4, num_heads=4, num_classes=0, **PLAIN
        ).eval()
        vit.load_state_dict(written)
        features = source.backbone(IMAGES, {task: 2})[2]  # of stride 16, from the third block
        (level,) = vit.forward_intermediates(IMAGES, indices=[2], intermediates_only=True)
        torch.testing.assert_close(level, features, atol=1e-5, rtol=1e-5)
        return
    plain = segmentor(task, lora=None)
    load_weights(plain, tmp_path / "out.pth")
    torch.testing.assert_close(plain(IMAGES), expected, atol=1e-5, rtol=1e-5)
    if layout == "s5":
        assert written["meta"] == meta(task)


def test_adapters_of_several_tasks_are_kept_in_our_layout_and_need_a_task_in_others(tmp_path: Path) -> None:
    source = segmentor("a", "b")
    path = saved(tmp_path / "in.pth", source)
    convert_file(path, tmp_path / "same.pth", get_layout("s5"))
    kept = read_checkpoint(tmp_path / "same.pth")
    assert kept["state_dict"].keys() == source.state_dict().keys() and kept["meta"] == meta("a", "b")
    for layout in ("timm", "published"):
        with pytest.raises(CheckpointError, match=r"in.pth: LoRA adapters for a, b, .*--task.*--to s5"):
            convert_file(path, tmp_path / "out.pth", get_layout(layout))
        with pytest.raises(CheckpointError, match=r"has no LoRA adapters, but .* for a, b"):
            get_layout(layout).from_ours(convert(source.state_dict()))
    with pytest.raises(CheckpointError, match="--task c: the checkpoint has a, b"):
        convert_file(path, tmp_path / "out.pth", get_layout("s5"), task="c")


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA])
def test_experts_of_the_task_are_merged_too(tmp_path: Path, lora: Lora | None) -> None:
    source = segmentor("a", "b", lora=lora, expert_channels=8)
    path = saved(tmp_path / "in.pth", source, "tiny_moe")
    convert_file(path, tmp_path / "out.pth", get_layout("s5"), task="b")
    plain = segmentor("b", lora=None)
    report = load_weights(plain, tmp_path / "out.pth")
    assert not report.missing and not report.unexpected
    torch.testing.assert_close(plain(IMAGES), source(IMAGES, "b"), atol=1e-5, rtol=1e-5)
    assert read_checkpoint(tmp_path / "out.pth")["meta"] == meta("b")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merged_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in segmentor("a").state_dict().items()}
    report = load_weights(plain := segmentor("seg", lora=None), state)
    assert report.backbone_share == 1
    weight = state["backbone.blocks.0.attn.qkv.weight"].float()
    assert not torch.equal(plain.backbone.blocks[0].attn.qkv.weight, weight)
