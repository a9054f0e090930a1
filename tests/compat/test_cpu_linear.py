"""Linear layers as convolutions: the same numbers and gradients, for every shape of input."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from s5.backbones import create_backbone
from s5.backbones.vit import Variant, ViT
from s5.compat import cpu_linear
from s5.compat.cpu_linear import ConvolutionLinear, linear_by_convolution


@pytest.mark.parametrize("shape", [(5, 96), (2, 7, 96), (2, 3, 4, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(64, 96, requires_grad=True)
    offset = torch.randn(64, requires_grad=True) if bias else None
    inputs = [x, weight, *([offset] if bias else [])]
    ours, theirs = linear_by_convolution(x, weight, offset), F.linear(x, weight, offset)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    upstream = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With one thread the mode changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_backbone_is_the_same_inside_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = cpu_linear.linear_by_convolution
    monkeypatch.setattr(cpu_linear, "linear_by_convolution", lambda *args: calls.append(1) or original(*args))
    vit = create_backbone("vit_t", 32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(images)
        with ConvolutionLinear():
            ours = vit(images)
    # qkv, projection and two of the FFN in every block; three expansions of the pyramid
    assert len(calls) == 4 * len(vit.blocks) + 3
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_checkpointed_blocks_recompute_what_they_computed() -> None:
    """The backward pass runs outside of the mode."""
    images, gradients = torch.randn(1, 3, 32, 32), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vit = ViT(Variant("small", 64, 4, 1, (0, 1, 2, 3)), 32, activation_checkpointing=checkpointing)
        with ConvolutionLinear():
            loss = sum(level.square().mean() for level in vit(images))
        loss.backward()
        gradients.append([p.grad for p in vit.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_mode_ends() -> None:
    with ConvolutionLinear():
        pass
    x, weight = torch.randn(4, 64), torch.randn(64, 64)
    assert torch.equal(F.linear(x, weight), x @ weight.T)
