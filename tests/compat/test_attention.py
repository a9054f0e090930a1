"""Attention kernels: cuDNN's is off, and what it gets wrong is noticed."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.backbones.vit import Variant, ViT
from s5.compat.attention import allowed_backends, choose_backends
from s5.detection.network import build_detector
from s5.launch import Launch
from s5.segmentation.segmentor import build_segmentor
from s5.training.runner import S5Runner

HEAD = 64  # channels of a head, as in all backbones up to ViT-L
SMALL = Variant("small", 2 * HEAD, 4, 2, (0, 1, 2, 3))
TILE = 128  # keys that the faulty kernel reads at a time
LOW = -120.0  # score of every query with every key; exp(120) is beyond float32


def attention_layer(score: float) -> nn.Module:
    """A backbone's attention in which all scores are ``score``, give or take 2.

    The first channel of every head is 1 in queries and the same large number in keys.
    """
    torch.manual_seed(0)
    layer = ViT(SMALL, 64).blocks[0].attn
    nn.init.normal_(layer.qkv.weight, std=0.1)
    nn.init.zeros_(layer.qkv.bias)
    queries, keys, _ = layer.qkv.weight.data.view(3, 2, HEAD, -1)
    queries[:, 0] = keys[:, 0] = 0
    queries, keys, _ = layer.qkv.bias.data.view(3, 2, HEAD)
    queries[:, 0] = 1
    keys[:, 0] = score * HEAD**0.5
    return layer


def check_attention(device: str, length: int, dtype: torch.dtype, score: float = LOW) -> None:
    """Compare a backbone's attention with float64: output, and gradients of tokens and weights.

    Raises:
        AssertionError: They differ by more than rounding, or are not finite.
    """
    layer = attention_layer(score)
    tokens, upstream = torch.randn(2, length, SMALL.width), torch.randn(2, length, SMALL.width)
    exact = copy.deepcopy(layer).double()
    exact.fused_attn = False  # written out in plain operations
    expected = _results(exact, tokens.double(), upstream.double())
    with torch.autocast(device, dtype):
        found = _results(layer.to(device), tokens.to(device), upstream.to(device))
    for name, value in expected.items():
        ours = found[name].cpu().double()
        assert ours.isfinite().all(), f"{name}: {int((~ours.isfinite()).sum())} values are not finite"
        error = (ours - value).norm() / value.norm()
        assert error < 0.02, f"{name}: off by {error:.3g}"


def _results(layer: nn.Module, tokens: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    tokens = tokens.detach().requires_grad_()
    out = layer(tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        out.to(upstream.dtype).backward(upstream)
    # The exact gradient of the first channels is 0: nothing to hold a rounding error against.
    weight = layer.qkv.weight.grad.view(3, 2, HEAD, -1)[:, :, 1:]
    return {"output": out.detach(), "tokens": tokens.grad, "qkv": weight, "proj": layer.proj.weight.grad}


class UnmaskedTile(torch.autograd.Function):
    """Attention whose backward pass fills the last tile of keys with zeros and forgets to mask them."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            q, k = (x.float() * x.shape[-1] ** -0.25 for x in (query, key))
            v = value.float()
            scores = q @ k.transpose(-1, -2)
            out = scores.softmax(-1) @ v
        ctx.save_for_backward(q, k, v, out, scores.logsumexp(-1, keepdim=True))
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        length, dtype, upstream = k.shape[-2], upstream.dtype, upstream.float()
        k, v = (F.pad(x, (0, 0, 0, -length % TILE)) for x in (k, v))
        weights = torch.exp(q @ k.transpose(-1, -2) - lse)  # exp(0 - LSE) beyond the last key
        grad = weights * (upstream @ v.transpose(-1, -2) - (upstream * out).sum(-1, keepdim=True))
        scale = q.shape[-1] ** -0.25
        grads = (
            scale * (grad @ k),
            scale * (grad.transpose(-1, -2) @ q),
            weights.transpose(-1, -2) @ upstream,
        )
        return tuple(x[..., :length, :].to(dtype) for x in grads)


def use(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        return kernel(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)


@pytest.mark.parametrize("score", [0.0, LOW])
@pytest.mark.parametrize("length", [64, 128, 192])
def test_gradients_where_all_scores_are_very_low(length: int, score: float) -> None:
    check_attention("cpu", length, torch.bfloat16, score)


def test_all_rows_are_below_what_exp_bears() -> None:
    qkv = attention_layer(LOW).qkv(torch.randn(2, 64, SMALL.width)).view(2, 64, 3, 2, HEAD)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / HEAD**0.5
    assert scores.logsumexp(-1).max() < -100 < -88.7


@pytest.mark.parametrize("length", [64, 192])
def test_the_faulty_kernel_is_noticed(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is right for usual scores and for whole tiles, which is why usual tests do not notice it."""
    use(UnmaskedTile.apply, monkeypatch)
    check_attention("cpu", length, torch.bfloat16, score=0.0)
    check_attention("cpu", 128, torch.bfloat16)
    with pytest.raises(AssertionError, match="tokens: .* not finite"):
        check_attention("cpu", length, torch.bfloat16)


def test_a_wrong_scale_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = F.scaled_dot_product_attention
    use(lambda query, key, value: right(query, key, value, scale=0.13), monkeypatch)
    with pytest.raises(AssertionError, match="off by"):
        check_attention("cpu", 64, torch.bfloat16)


@pytest.fixture
def cudnn_on() -> None:
    """As PyTorch is set up; backbones built in earlier tests have changed it."""
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.usefixtures("cudnn_on")
def test_building_a_backbone_switches_cudnn_off() -> None:
    for build in (
        lambda: ViT(SMALL, 64),
        lambda: build_segmentor("vit_t", {"mine": 2}, 32, channels=8),
        lambda: build_detector("vit_t", {"mine": 2}, 64),
    ):
        torch.backends.cuda.enable_cudnn_sdp(True)
        build()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert allowed_backends() == ["flash", "memory-efficient", "math"]


@pytest.mark.usefixtures("cudnn_on")
def test_the_variable_leaves_it_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S5_CUDNN_ATTENTION", "on")
    choose_backends()
    assert allowed_backends() == ["cuDNN", "flash", "memory-efficient", "math"]
    monkeypatch.setenv("S5_CUDNN_ATTENTION", "yes")
    with pytest.raises(ValueError, match="S5_CUDNN_ATTENTION='yes': set it to off or on, or unset it"):
        ViT(SMALL, 64)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_log_of_a_run_on_a_gpu_names_the_kernels(device: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    choose_backends()
    runner = SimpleNamespace(
        launch=Launch(torch.device(device), 0, 1), logger=logging.getLogger("s5"), seed=0
    )
    with caplog.at_level(logging.INFO, "s5"):
        S5Runner._log_env(runner, {})
    line = "attention kernels: flash, memory-efficient, math"
    assert (line in caplog.text) == (device == "cuda")
