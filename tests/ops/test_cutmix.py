"""CutMix against the published values, shapes and edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s5.ops.cutmix import box_mask, cutmix


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, torch.Tensor]:
    file = np.load(shared / "reference" / "golden" / "golden_losses.npz")
    return {name: torch.from_numpy(file[name]) for name in file.files}


def enclosing_boxes(masks: torch.Tensor) -> torch.Tensor:
    boxes = torch.zeros(len(masks), 4, dtype=torch.int64)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if len(rows):
            box[:] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def with_partners(x: torch.Tensor, mix: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Runs CutMix on a batch of which the second half holds the partners of the first."""
    count = len(x)
    partner = torch.arange(2 * count).roll(count)
    boxes = torch.cat([boxes, torch.zeros_like(boxes)])
    return cutmix(torch.cat([x, mix]), boxes, partner)[:count]


def test_box_masks_are_the_published_ones(golden: dict[str, torch.Tensor]) -> None:
    masks = golden["box"].bool()
    assert not masks[1].any()  # one of them is empty
    assert torch.equal(box_mask(enclosing_boxes(masks), 24, 24), masks)


def test_cutmix_is_the_published_one(golden: dict[str, torch.Tensor]) -> None:
    boxes = enclosing_boxes(golden["box"])
    own, mix = golden["pred_w"].softmax(1).max(1), golden["pred_w_mix"].softmax(1).max(1)
    cases = [
        (golden["img"], golden["img_mix"], golden["img_cutmixed"]),
        (own.indices, mix.indices, golden["mask_cutmixed"]),
        (own.values, mix.values, golden["conf_cutmixed"]),
        (golden["ignore"], golden["ignore_mix"], golden["ignore_cutmixed"]),
    ]
    for x, other, expected in cases:
        torch.testing.assert_close(with_partners(x, other, boxes), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool, torch.int64])
def test_pasted_from_the_partner_inside_the_box_only(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (3, 2, 6, 8)).to(dtype)
    boxes = torch.tensor([[1, 2, 4, 5], [0, 0, 8, 6], [0, 0, 0, 0]])
    out = cutmix(x, boxes, torch.tensor([1, 2, 0]))
    assert out.dtype == dtype
    expected = x.clone()
    expected[0, :, 2:5, 1:4] = x[1, :, 2:5, 1:4]
    expected[1] = x[2]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [3, 3, 3, 5], [5, 1, 2, 4]])
def test_empty_box_changes_nothing(box: list[int]) -> None:
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(cutmix(x, torch.tensor([box, box]), torch.tensor([1, 0])), x)


def test_gradient_goes_to_where_the_pixel_came_from() -> None:
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    cutmix(x, torch.tensor([[0, 0, 2, 4], [0, 0, 0, 0]]), torch.tensor([1, 0]))[0].sum().backward()
    assert x.grad[0, 0, :, 2:].eq(1).all() and x.grad[0, 0, :, :2].eq(0).all()
    assert x.grad[1, 0, :, :2].eq(1).all() and x.grad[1, 0, :, 2:].eq(0).all()
