"""Losses against the published values and at their edges."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from s5.ops.losses import dice_loss, focal_loss, pixel_cross_entropy, pseudo_label_loss


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, torch.Tensor]:
    file = np.load(shared / "reference" / "golden" / "golden_losses.npz")
    return {name: torch.from_numpy(file[name]) for name in file.files}


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 8, 8, generator=generator, requires_grad=True)
    labels = torch.randint(5, (2, 8, 8), generator=generator)
    conf = torch.rand(2, 8, 8, generator=generator)
    valid = torch.rand(2, 8, 8, generator=generator) < 0.7
    return logits, labels, conf, valid


def test_labeled_loss_is_the_published_one(golden: dict[str, torch.Tensor]) -> None:
    loss = pixel_cross_entropy(golden["logits_s"], golden["label_l"])
    assert loss.item() == pytest.approx(golden["loss_l"].item(), abs=1e-5)


@pytest.mark.parametrize("conf_thresh", [0.5, 0.8, 0.95])
def test_pseudo_label_loss_is_the_published_one(golden: dict[str, torch.Tensor], conf_thresh: float) -> None:
    valid = golden["ignore_cutmixed"] != 255
    confident = golden["conf_cutmixed"] >= conf_thresh
    loss = pseudo_label_loss(golden["logits_s"], golden["mask_cutmixed"], confident, valid)
    assert loss.item() == pytest.approx(golden[f"loss_pixelwise_{conf_thresh}"].item(), abs=1e-5)


def test_cross_entropy_map_is_the_published_one(golden: dict[str, torch.Tensor]) -> None:
    """Each pixel alone: the loss of one valid confident pixel is its entry in the map."""
    logits, pseudo = golden["logits_s"], golden["mask_cutmixed"]
    for index in [(0, 0, 0), (1, 7, 11), (2, 23, 23)]:
        valid = torch.zeros_like(pseudo, dtype=torch.bool)
        valid[index] = True
        loss = pseudo_label_loss(logits, pseudo, torch.ones(pseudo.shape, dtype=torch.bool), valid)
        assert loss.item() == pytest.approx(golden["ce"][index].item(), abs=1e-5)


def test_pixels_below_the_threshold_count_as_zero() -> None:
    logits, labels, conf, valid = random_case()
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (ce * ((conf >= 0.6) & valid)).sum() / valid.sum()
    torch.testing.assert_close(pseudo_label_loss(logits, labels, conf >= 0.6, valid), expected)


@pytest.mark.parametrize("case", ["no confident pixel", "no valid pixel"])
def test_nothing_to_learn_gives_zero_with_graph(case: str) -> None:
    logits, labels, conf, valid = random_case()
    conf_thresh = 1.1 if case == "no confident pixel" else 0.1
    valid = valid & (case != "no valid pixel")
    loss = pseudo_label_loss(logits, labels, conf >= conf_thresh, valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_labeled_loss_without_labeled_pixel_is_zero_with_graph() -> None:
    logits, labels, _, _ = random_case()
    loss = pixel_cross_entropy(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_get_no_gradient() -> None:
    logits, labels, conf, valid = random_case()
    pseudo_label_loss(logits, labels, conf >= 0.5, valid).backward()
    counted = valid & (conf >= 0.5)
    assert torch.equal(logits.grad.abs().sum(1) > 0, counted)


def test_float32_under_autocast() -> None:
    logits, labels, conf, valid = random_case()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = pixel_cross_entropy(half, labels), pseudo_label_loss(half, labels, conf >= 0.5, valid)
    expected = (
        pixel_cross_entropy(half.float(), labels),
        pseudo_label_loss(half.float(), labels, conf >= 0.5, valid),
    )
    for loss, value in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, value)


def test_uint8_labels() -> None:
    logits, labels, _, _ = random_case()
    labels[0, :4] = 255
    assert torch.equal(pixel_cross_entropy(logits, labels.byte()), pixel_cross_entropy(logits, labels))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_ignored_pixels_count_nowhere(loss: Callable) -> None:
    logits, labels, _, valid = random_case()
    masked = torch.where(valid, labels, 255)
    changed = torch.where(valid.unsqueeze(1), logits, logits.detach() * 3 + 1)
    assert loss(logits, masked).item() == pytest.approx(loss(changed, masked).item(), rel=1e-6)
    assert loss(logits, masked).item() != pytest.approx(loss(logits, labels).item(), rel=1e-3)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_without_a_labeled_pixel_a_loss_is_zero_with_gradient(loss: Callable) -> None:
    logits, labels, *_ = random_case()
    value = loss(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


def test_focal_loss_by_its_formula() -> None:
    logits, labels, *_ = random_case()
    p = logits.softmax(1).gather(1, labels.unsqueeze(1))
    assert focal_loss(logits, labels).item() == pytest.approx(
        (-((1 - p) ** 2) * p.log()).mean().item(), rel=1e-5
    )
    assert focal_loss(logits, labels, gamma=0).item() == pytest.approx(
        pixel_cross_entropy(logits, labels).item(), rel=1e-6
    )


def test_dice_loss_by_its_formula() -> None:
    """Class 4 does not occur, and so is not averaged in."""
    logits, labels, *_ = random_case()
    labels = labels.clamp(max=3)
    p, expected = logits.softmax(1), []
    for k in range(4):
        t = (labels == k).float()
        expected.append(1 - (2 * (p[:, k] * t).sum() + 1) / ((p[:, k] ** 2).sum() + t.sum() + 1))
    assert dice_loss(logits, labels).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    perfect = torch.nn.functional.one_hot(labels, 5).permute(0, 3, 1, 2) * 100.0
    assert dice_loss(perfect, labels).item() == pytest.approx(0, abs=1e-5)
