"""RoIAlign of rotated regions: golden files, torchvision at angle 0, exact features, gradient."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from s5.ops import rotated_roi_align as module
from s5.ops.rotated_roi_align import Sampling, rotated_roi_align
from tests.helpers.rotated_boxes import extreme_boxes

FLAGS = list(itertools.product((0, 1, 2, 3), (True, False), (True, False)))


def random_rois(count: int, images: int = 2, size: float = 64, seed: int = 0) -> Tensor:
    """Regions (count, 6) of images of the given size; some reach beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 6, generator=generator)
    image = torch.arange(count)[:, None] % images
    extent = 2 + draws[:, 2:4] * size / 2
    return torch.cat((image, draws[:, :2] * size, extent, (draws[:, 4:5] - 0.5) * 2 * math.pi), dim=1)


def upright(rois: Tensor) -> Tensor:
    return torch.cat((rois[:, :1], rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2), dim=1)


def gradient(features: Tensor, rois: Tensor, sampling: Sampling, grad: Tensor) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    output = rotated_roi_align(features, rois, sampling)
    output.backward(grad)
    return output.detach(), features.grad


@pytest.mark.parametrize(("ratio", "aligned", "clockwise"), FLAGS)
def test_equals_torchvision_at_angle_0(ratio: int, aligned: bool, clockwise: bool) -> None:
    features, rois = torch.randn(2, 5, 24, 40), random_rois(20)
    rois[:, 5] = 0
    grad = torch.randn(20, 5, 3, 4)
    ours = gradient(features, rois, Sampling((3, 4), 0.5, ratio, aligned, clockwise), grad)
    features.requires_grad_()
    expected = roi_align(features, upright(rois), (3, 4), 0.5, ratio, aligned)
    expected.backward(grad)
    torch.testing.assert_close(ours[0], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], features.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("clockwise", [True, False])
def test_a_linear_map_gives_the_value_at_the_middle_of_each_bin(clockwise: bool, aligned: bool) -> None:
    """Bilinear samples of a plane are exact, and the mean of a symmetric grid is the value at its middle."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    features = torch.stack((x, y))[None]  # the value is the pixel's index
    roi = torch.tensor([[0, 40.0, 30, 16, 8, 0.4]])
    shift = 0.5 if aligned else 0
    angle = 0.4 if clockwise else -0.4  # y points down, so that this turns x towards y
    bin_u, bin_v = torch.tensor([-1.5, -0.5, 0.5, 1.5]) * 2, torch.tensor([-0.5, 0.5]) * 2
    v, u = torch.meshgrid(bin_v, bin_u, indexing="ij")
    expected_x = 20 - shift + u * math.cos(angle) - v * math.sin(angle)
    expected_y = 15 - shift + u * math.sin(angle) + v * math.cos(angle)
    for ratio in (0, 1, 3):
        output = rotated_roi_align(features, roi, Sampling((2, 4), 0.5, ratio, aligned, clockwise))
        torch.testing.assert_close(output[0], torch.stack((expected_x, expected_y)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_both_directions_are_mirror_images(ratio: int) -> None:
    features, rois = torch.randn(2, 3, 20, 20), random_rois(10)
    mirrored = rois * torch.tensor([1, 1, 1, 1, 1, -1])
    torch.testing.assert_close(
        rotated_roi_align(features, rois, Sampling((3, 3), 0.3, ratio, clockwise=True)),
        rotated_roi_align(features, mirrored, Sampling((3, 3), 0.3, ratio, clockwise=False)),
    )


def test_half_a_turn_turns_the_output() -> None:
    features, rois = torch.randn(2, 3, 20, 20).double(), random_rois(10).double()
    turned = rois + torch.tensor([0, 0, 0, 0, 0, math.pi], dtype=torch.float64)
    sampling = Sampling((3, 5), 0.3)
    expected = rotated_roi_align(features, rois, sampling).flip(2, 3)
    torch.testing.assert_close(rotated_roi_align(features, turned, sampling), expected)


@pytest.mark.parametrize(("ratio", "aligned", "clockwise"), FLAGS)
def test_gradient(ratio: int, aligned: bool, clockwise: bool) -> None:
    features = torch.randn(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    rois = random_rois(5, size=30).double()
    sampling = Sampling((2, 3), 0.25, ratio, aligned, clockwise)
    assert torch.autograd.gradcheck(lambda x: rotated_roi_align(x, rois, sampling), (features,))


@pytest.mark.parametrize("ratio", [0, 2])
def test_pieces_do_not_change_the_result(ratio: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, rois, grad = torch.randn(2, 4, 16, 16), random_rois(30), torch.randn(30, 4, 2, 3)
    sampling = Sampling((2, 3), 0.5, ratio)
    expected = gradient(features, rois, sampling, grad)
    monkeypatch.setattr(module, "SAMPLES", 400)
    monkeypatch.setattr(module, "CPU_SAMPLES", 150)
    pieces = list(module._pieces(module._regions(rois, sampling), 6, ratio))
    assert len(pieces) > 3
    assert len(list(module._all_taps(rois, (16, 16), torch.float32, sampling))) > 1
    assert [begin for begin, _, _ in pieces[1:]] == [end for _, end, _ in pieces[:-1]]
    for ours, whole in zip(gradient(features, rois, sampling, grad), expected, strict=True):
        torch.testing.assert_close(ours, whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, rois, sampling = torch.randn(2, 4, 16, 16).to(dtype), random_rois(9), Sampling((2, 3), 0.25, 2)
    grad = torch.randn(9, 4, 2, 3).to(dtype)
    expected = gradient(features.float(), rois, sampling, grad.float())
    for ours, exact in zip(gradient(features, rois, sampling, grad), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_matter(memory_format: torch.memory_format) -> None:
    features, rois, sampling = torch.randn(2, 4, 16, 16), random_rois(9), Sampling((2, 3), 0.25, 2)
    expected = rotated_roi_align(features, rois, sampling)
    output = rotated_roi_align(features.contiguous(memory_format=memory_format), rois, sampling)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("ratio", "aligned", "clockwise"), FLAGS)
def test_any_finite_region_gives_finite_output(
    ratio: int, aligned: bool, clockwise: bool, dtype: torch.dtype
) -> None:
    boxes = extreme_boxes(60, dtype)
    rois = torch.cat((torch.arange(60)[:, None] % 2, boxes), dim=1).to(dtype)
    features, grad = torch.randn(2, 3, 9, 11).to(dtype), torch.randn(60, 3, 2, 3).to(dtype)
    sampling = Sampling((2, 3), 0.5, ratio, aligned, clockwise)
    for result in gradient(features, rois, sampling, grad):
        assert result.dtype == dtype
        assert result.isfinite().all()


@pytest.mark.parametrize("ratio", [0, 2])
def test_no_regions(ratio: int) -> None:
    features, sampling = torch.randn(2, 4, 8, 8), Sampling((2, 3), 0.25, ratio)
    output, grad = gradient(features, random_rois(0), sampling, torch.zeros(0, 4, 2, 3))
    assert output.shape == (0, 4, 2, 3)
    assert torch.equal(grad, torch.zeros_like(features))
    assert rotated_roi_align(features[:0], random_rois(0), sampling).shape == (0, 4, 2, 3)


def test_golden(shared) -> None:
    golden = np.load(shared / "reference" / "golden" / "roi_align_rotated_s8.npz")
    features, rois, grad = (torch.from_numpy(golden[name]) for name in ("feat", "rois", "grad_out"))
    names = [name.removeprefix("out_") for name in golden if name.startswith("out_")]
    assert len(names) == 6
    for name in names:
        ratio, clockwise, aligned = (int(part[2:]) for part in name.split("_"))
        sampling = Sampling((7, 7), float(golden["scale"]), ratio, bool(aligned), bool(clockwise))
        output, grad_in = gradient(features, rois, sampling, grad)
        np.testing.assert_allclose(output.numpy(), golden[f"out_{name}"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(grad_in.numpy(), golden[f"gin_{name}"], rtol=0, atol=1e-4)


def test_golden_of_another_shape(shared) -> None:
    golden = np.load(shared / "reference" / "golden" / "roi_align_rotated_3x5.npz")
    features, rois, grad = (torch.from_numpy(golden[name]) for name in ("feat", "rois", "grad_out"))
    output, grad_in = gradient(features, rois, Sampling((3, 5), float(golden["scale"]), 2), grad)
    np.testing.assert_allclose(output.numpy(), golden["out"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(grad_in.numpy(), golden["gin"], rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [0, 2])
def test_cuda_equals_cpu(ratio: int) -> None:
    features, rois, grad = torch.randn(2, 8, 32, 32), random_rois(50), torch.randn(50, 8, 7, 7)
    sampling = Sampling((7, 7), 0.5, ratio)
    expected = gradient(features, rois, sampling, grad)
    on_gpu = features.cuda(), rois.cuda(), sampling, grad.cuda()
    first = gradient(*on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error" if ratio else "default")
    try:
        again = gradient(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, repeated, exact in zip(first, again, expected, strict=True):
        torch.testing.assert_close(result.cpu(), exact, rtol=1e-4, atol=1e-5)
        assert torch.equal(result, repeated)
