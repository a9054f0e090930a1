"""Segmentation model: sizes, tasks, gradients, precision; equality with the published network."""

import numpy as np
import pytest
import torch

from s5.backbones.vit import Variant
from s5.checkpoints.layouts import convert
from s5.compat.precision import autocast, resolve_precision
from s5.segmentation.segmentor import Segmentor, build_segmentor

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))
GOLDEN_TASKS = {"vaihingen": 5, "potsdam": 5, "openearthmap": 9, "loveda": 7}


def tiny_segmentor(tasks=None, **options) -> Segmentor:
    return build_segmentor(TINY, tasks or {"seg": 3}, 64, channels=8, **options)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 75), (20, 200), (5, 7), (33, 32)])
def test_logits_have_the_size_of_the_image(height, width):
    model = tiny_segmentor().eval()
    assert model(torch.randn(2, 3, height, width)).shape == (2, 3, height, width)


def test_padding_does_not_shift_the_logits():
    model = tiny_segmentor().eval()
    image = torch.randn(1, 3, 50, 64)
    padded = torch.nn.functional.pad(image, (0, 0, 0, 14))
    assert torch.equal(model(image), model(padded)[:, :, :50])


def test_every_unfrozen_parameter_gets_a_gradient_and_no_frozen_one():
    model = tiny_segmentor({"a": 3, "b": 4}, expert_channels=8)
    logits = model.forward_tasks(torch.randn(4, 3, 64, 64), {"a": 2, "b": 2})
    sum(x.square().mean() for x in logits.values()).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in model.named_parameters() if p.grad is None}
    assert sorted(name.split(".")[-2:] for name in frozen) == [
        ["backbone", "cls_token"],
        *[["conv_seg", "bias"]] * 2,
        *[["conv_seg", "weight"]] * 2,
    ]


def test_a_batch_of_several_tasks_equals_one_pass_per_task():
    model = tiny_segmentor({"a": 3, "b": 4}, expert_channels=8).eval()
    images = torch.randn(3, 3, 40, 56)
    together = model.forward_tasks(images, {"a": 1, "b": 2})
    assert {task: tuple(x.shape) for task, x in together.items()} == {
        "a": (1, 3, 40, 56),
        "b": (2, 4, 40, 56),
    }
    torch.testing.assert_close(together["a"], model(images[:1], "a"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together["b"], model(images[1:], "b"), atol=1e-5, rtol=1e-5)
    assert list(model.forward_tasks(images, {"a": 0, "b": 3})) == ["b"]


@pytest.mark.parametrize("task", [None, "c"])
def test_unknown_task_lists_the_known_ones(task):
    model = tiny_segmentor({"a": 3, "b": 4})
    with pytest.raises(ValueError, match=f"{task}.*tasks: a, b"):
        model(torch.zeros(2, 3, 64, 64), task)


def test_experts_and_heads_must_be_for_the_same_tasks():
    backbone = tiny_segmentor({"a": 3, "b": 4}, expert_channels=8).backbone
    heads = tiny_segmentor({"b": 3, "a": 4}).heads
    with pytest.raises(ValueError, match="experts for a, b, but the heads are for b, a"):
        Segmentor(backbone, dict(heads.items()))


def test_logits_are_float32_under_bfloat16_and_close_to_float32():
    model = tiny_segmentor().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(images)
        with autocast("cpu", torch.bfloat16):
            low = model(images)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert (low - exact).abs().max() < 0.05 * exact.abs().max() + 0.01


def test_precision_names():
    assert resolve_precision("fp32", "cpu") is None
    assert resolve_precision("bf16", "cpu") == torch.bfloat16
    assert resolve_precision("fp16", "cpu") == torch.float16
    with pytest.raises(ValueError, match="'int8'.*auto, bf16, fp16, fp32"):
        resolve_precision("int8", "cpu")


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None)],
)
def test_automatic_precision_on_cpu_follows_its_instructions(monkeypatch, amx, avx512, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert resolve_precision("auto", "cpu") == dtype


def test_precision_without_the_queries_is_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert resolve_precision("auto", "cpu") is None


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_automatic_precision_on_gpu_follows_bfloat16(monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert resolve_precision("auto", "cuda") == dtype


@pytest.mark.slow
def test_compiled_model_equals_eager():
    model = tiny_segmentor().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, backend="aot_eager")(images), model(images), atol=1e-5, rtol=1e-5
        )


def load_golden(shared, name):
    data = np.load(shared / "reference" / "golden" / f"golden_{name}.npz")
    return {key: torch.from_numpy(data[key]) for key in data.files}


def published_model(golden, variant, tasks, channels, expert_channels=0):
    """The model with the golden weights, converted tensor for tensor."""
    weights = convert({key.removeprefix("sd."): v for key, v in golden.items() if key.startswith("sd.")})
    assert weights.unused == ()
    model = build_segmentor(variant, tasks, 64, channels=channels, expert_channels=expert_channels)
    state = {f"backbone.{key}": value for key, value in weights.backbone.items()}
    for task, head in weights.heads.items():
        state |= {f"heads.{task}.{key}": value for key, value in head.items()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_published_upernet_is_reproduced(shared):
    golden = load_golden(shared, "upernet_vit4")
    model = published_model(golden, Variant("golden", 64, 4, 4, (0, 1, 2, 3)), {"seg": 16}, 32)
    for level, features in enumerate(model.encode(golden["input"])):
        torch.testing.assert_close(features, golden[f"feat{level}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(golden["input"]), golden["logits"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_published_multi_dataset_model_is_reproduced(shared):
    golden = load_golden(shared, "moe_mdf")
    model = published_model(golden, Variant("golden", 48, 4, 4, (0, 1, 2, 3)), GOLDEN_TASKS, 16, 16)
    images, counts = golden["input"].repeat(4, 1, 1, 1), dict.fromkeys(GOLDEN_TASKS, len(golden["input"]))
    together = model.forward_tasks(images, counts)
    for task in GOLDEN_TASKS:
        for level, features in enumerate(model.encode(golden["input"], {task: 2})):
            torch.testing.assert_close(features, golden[f"{task}.feat{level}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(model(golden["input"], task), golden[f"{task}.logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(together[task], golden[f"{task}.logits"], atol=1e-5, rtol=0)
