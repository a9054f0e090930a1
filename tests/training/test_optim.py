"""Optimizer groups and the learning-rate schedule."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from s5.backbones.vit import VARIANTS
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.training.optim import build_optim_wrapper, cosine_schedule, param_groups
from tests.helpers.processes import run_here
from tests.helpers.s4p_runs import arguments, write_dataset
from tests.helpers.shallow_vit import SHALLOW

LR, DECAY = 1e-3, 0.01


def segmentor(backbone: str = "vit_t", **options: int) -> Segmentor:
    with torch.device("meta"):
        return build_segmentor(backbone, {"seg": 3}, 64, channels=8, **options)


def settings(model: Segmentor, layer_decay: float = 1.0) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter by name, as the optimizer has them."""
    wrapper = build_optim_wrapper(param_groups(model, LR, DECAY, layer_decay), LR, (0.9, 0.999), None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("layer_decay", [1.0, 0.9])
def test_every_trainable_parameter_is_in_one_group(layer_decay: float) -> None:
    model = segmentor()
    groups = param_groups(model, LR, DECAY, layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)


def test_frozen_parameters_are_left_out() -> None:
    model = segmentor()
    assert "backbone.cls_token" in dict(model.named_parameters())
    model.backbone.blocks[3].requires_grad_(False)
    found = settings(model)
    assert not [name for name in found if name.endswith("cls_token") or name.startswith("backbone.blocks.3.")]


def test_norms_and_positional_embedding_are_not_decayed() -> None:
    """A norm is what has a weight of one dimension; its bias goes with it."""
    model = segmentor(expert_channels=8)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    norms = {
        name.removesuffix(".weight") for name, s in shapes.items() if name.endswith(".weight") and len(s) == 1
    }
    assert len(norms) == 2 * SHALLOW.depth + 1 + 12, "of the blocks, the pyramid and the decoder"
    for name, (_, decay) in settings(model).items():
        exempt = name == "backbone.pos_embed" or name.rpartition(".")[0] in norms
        assert decay == (0.0 if exempt else DECAY), name


def test_exemptions_can_be_switched_off() -> None:
    groups = param_groups(segmentor(), LR, DECAY, exempt_norms=False)
    assert {group["weight_decay"] for group in groups} == {DECAY}
    assert sum(len(group["params"]) for group in groups) == len(settings(segmentor()))


@pytest.mark.usefixtures("real_vit_t")
@pytest.mark.parametrize("backbone", VARIANTS)
def test_layer_decay_reaches_the_optimizer(backbone: str) -> None:
    model, depth = segmentor(backbone), VARIANTS[backbone].depth
    rates = {name: lr for name, (lr, _) in settings(model, layer_decay=0.8).items()}
    expected = {"backbone.pos_embed": depth + 1, "backbone.patch_embed.proj.weight": depth + 1}
    for block in (0, depth // 2, depth - 1):
        for part in ("norm1.weight", "attn.qkv.weight", "attn.qkv.bias", "mlp.fc2.bias"):
            expected[f"backbone.blocks.{block}.{part}"] = depth - block
    for name in rates:
        if name.startswith(("heads.", "backbone.pyramid.")):
            expected[name] = 0
    assert {name: rates[name] for name in expected} == pytest.approx(
        {name: LR * 0.8**below for name, below in expected.items()}
    )


def test_without_layer_decay_all_rates_are_equal() -> None:
    assert {lr for lr, _ in settings(segmentor()).values()} == {LR}


def test_betas_and_clipping() -> None:
    groups = param_groups(segmentor(), LR, DECAY)
    plain = build_optim_wrapper(groups, LR, (0.8, 0.9), torch.bfloat16, clip_grad=0.5)
    assert plain.loss_scaler is None
    assert plain.clip_grad_kwargs == {"max_norm": 0.5}
    assert all(group["betas"] == (0.8, 0.9) for group in plain.optimizer.param_groups)


@pytest.mark.gpu
def test_fp16_has_a_gradient_scaler() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1, device="cuda"))]}]
    wrapper = build_optim_wrapper(groups, LR, (0.9, 0.999), torch.float16)
    assert wrapper.loss_scaler is not None and wrapper.loss_scaler.is_enabled()


def cosine(step: int, total: int, warmup: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.filterwarnings("ignore:Detected call of `scheduler.step")
@pytest.mark.parametrize(("total", "warmup"), [(1000, 0), (1000, 1), (1000, 5), (3, 2)])
def test_schedule_warms_up_and_falls_to_zero(total: int, warmup: int) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": LR * share} for p, share in zip(parameters, (1, 0.5), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    schedulers = [
        PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in cosine_schedule(total, warmup)
    ]
    rates = []
    for _ in range(total):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for scheduler in schedulers:
            scheduler.step()
    assert [second for _, second in rates] == pytest.approx([first / 2 for first, _ in rates])
    first = [rate / LR for rate, _ in rates]
    assert first[warmup:] == pytest.approx([cosine(i, total, warmup) for i in range(warmup, total)], abs=1e-9)
    assert total < 1000 or first[-1] < 1e-5
    if warmup > 1:
        assert first[0] == pytest.approx(1e-3)
        steps = [b - a for a, b in zip(first[:warmup], first[1:warmup], strict=False)]
        assert all(step == pytest.approx(0.999 / (warmup - 1)) for step in steps), "linear"


@pytest.mark.filterwarnings("ignore:Detected call of `scheduler.step")
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedule_by_epoch_is_that_of_pytorch_stepped_once_an_epoch(warmup: int) -> None:
    epochs, steps = 6, 4
    total = epochs * steps
    optimizer, theirs = (torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=LR) for _ in range(2))
    configs = cosine_schedule(total, warmup, steps)
    schedulers = [PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in configs]
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    if warmup:
        starts = [step // steps * steps for step in range(total)]
        expected = [LR * cosine(max(start, warmup), total, warmup) for start in starts]
        assert rates[warmup:] == pytest.approx(expected[warmup:])
        return
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, epochs)
    expected = []
    for _ in range(epochs):
        expected += [theirs.param_groups[0]["lr"]] * steps
        theirs.step()
        reference.step()
    assert rates == pytest.approx(expected)


@pytest.mark.slow
def test_run_follows_the_schedule(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    changes = {
        "optim.lr": LR,
        "optim.warmup_iters": 2,
        "optim.layer_decay": 0.5,
        "data.unlabeled.batch_size": 0,
    }
    assert run_here("train", arguments(root, tmp_path / "run", **changes)) == 0
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    rates = [(record["lr"], record["base_lr"]) for record in records if "loss" in record]
    shares = [1e-3, 1.0, *(cosine(step, 6, 2) for step in range(2, 6))]
    lowest = 0.5 ** (SHALLOW.depth + 1)  # the first group is layer 0: the blocks and the heads lie above it
    assert rates == [pytest.approx((LR * share * lowest, LR * share)) for share in shares]
