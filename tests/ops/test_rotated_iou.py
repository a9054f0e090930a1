"""Overlap of rotated boxes: exact geometry, what must not change it, and its gradient."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from s5.ops import rotated_iou as module
from s5.ops.boxes import columns_of, enclosing_boxes, overlapping_pairs
from s5.ops.rotated_iou import rotated_iou
from tests.helpers.rotated_boxes import exact_overlap, extreme_boxes, random_boxes

COUNT = 4000
TOLERANCE = 1e-6  # float32 results; the compiled operator is allowed 2e-5


def moved(boxes: Tensor, noise: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(boxes.shape, generator=generator) * noise
    result = boxes + change.to(boxes.dtype)
    result[:, 2:4] = result[:, 2:4].abs()
    return result


def turned(boxes: Tensor, angle: float) -> Tensor:
    return boxes + torch.tensor([0, 0, 0, 0, angle], dtype=boxes.dtype)


def swapped(boxes: Tensor) -> Tensor:
    return turned(boxes[:, [0, 1, 3, 2, 4]], math.pi / 2)


def touching(boxes: Tensor) -> Tensor:
    """The neighbours that share the right side."""
    result = boxes.clone()
    result[:, 0] += boxes[:, 2] * boxes[:, 4].cos()
    result[:, 1] += boxes[:, 2] * boxes[:, 4].sin()
    return result


def nested(boxes: Tensor) -> Tensor:
    result = boxes.clone()
    result[:, 2:4] *= torch.rand(len(boxes), 2)
    return result


def thin(boxes: Tensor) -> Tensor:
    return boxes * torch.tensor([1, 1, 10, 1e-3, 1])


def scaled(boxes: Tensor, factor: float) -> Tensor:
    return boxes * torch.tensor([factor] * 4 + [1], dtype=boxes.dtype)


def on_grid(boxes: Tensor) -> Tensor:
    """Whole numbers and multiples of 45 degrees: many common corners and edges."""
    return torch.cat((boxes[:, :4].round(), (boxes[:, 4:] * 4 / math.pi).round() * math.pi / 4), dim=1)


BOXES = random_boxes(COUNT)
OTHERS = random_boxes(COUNT, seed=1)
FAR = torch.tensor([1e5, -2e5, 0, 0, 0])
PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "random": lambda: (BOXES, OTHERS),
    "theta + pi": lambda: (BOXES, turned(BOXES, math.pi)),
    "theta - pi": lambda: (BOXES, turned(BOXES, -math.pi)),
    "many turns": lambda: (turned(BOXES, 100 * math.pi), turned(OTHERS, -300)),
    "sides swapped": lambda: (BOXES, swapped(BOXES)),
    "theta + pi, nearly equal 1e-6": lambda: (BOXES, turned(moved(BOXES, 1e-6), math.pi)),
    "theta + pi, nearly equal 1e-3": lambda: (BOXES, turned(moved(BOXES, 1e-3), math.pi)),
    "sides swapped, nearly equal 1e-6": lambda: (BOXES, swapped(moved(BOXES, 1e-6))),
    "sides swapped, nearly equal 1e-3": lambda: (BOXES, swapped(moved(BOXES, 1e-3))),
    "a million radians": lambda: (turned(BOXES, 1e6), turned(OTHERS, -1e6)),
    "equal": lambda: (BOXES, BOXES.clone()),
    "nearly equal 1e-7": lambda: (BOXES, moved(BOXES, 1e-7)),
    "nearly equal 1e-5": lambda: (BOXES, moved(BOXES, 1e-5)),
    "nearly equal 1e-3": lambda: (BOXES, moved(BOXES, 1e-3)),
    "nearly equal 0.1, swapped": lambda: (BOXES, swapped(moved(BOXES, 0.1))),
    "touching": lambda: (BOXES, touching(BOXES)),
    "nested": lambda: (BOXES, nested(BOXES)),
    "thin, crossing": lambda: (thin(BOXES), thin(swapped(OTHERS))),
    "thin, nearly equal": lambda: (thin(BOXES), moved(thin(BOXES), 1e-3)),
    "thin on square": lambda: (thin(BOXES), OTHERS),
    "far from the origin": lambda: (BOXES + FAR, moved(BOXES, 1.0) + FAR),
    "very far from the origin": lambda: (BOXES + 100 * FAR, moved(BOXES, 1.0) + 100 * FAR),
    "small in huge": lambda: (BOXES, OTHERS * torch.tensor([1, 1, 1000, 1000, 1])),
    "tiny": lambda: (scaled(BOXES, 1e-4), scaled(OTHERS, 1e-4)),
    "1e-30": lambda: (scaled(BOXES, 1e-30), scaled(OTHERS, 1e-30)),
    "1e30": lambda: (scaled(BOXES, 1e30), scaled(OTHERS, 1e30)),
    "corners and edges in common": lambda: (on_grid(BOXES), on_grid(OTHERS)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_exact_geometry(name: str) -> None:
    boxes1, boxes2 = PAIRS[name]()
    for mode, exact in zip(("iou", "iof"), exact_overlap(boxes1, boxes2), strict=True):
        for dtype, tolerance in ((torch.float32, TOLERANCE), (torch.float64, 1e-9)):
            result = rotated_iou(boxes1.to(dtype), boxes2.to(dtype), mode, aligned=True)
            assert result.dtype == dtype
            np.testing.assert_allclose(result.numpy(), exact, rtol=0, atol=tolerance, err_msg=str(dtype))


def test_each_with_each_equals_pair_by_pair() -> None:
    boxes1, boxes2 = BOXES[:300].reshape(2, 150, 5), OTHERS[:200].reshape(2, 100, 5)
    for mode in ("iou", "iof"):
        expected = rotated_iou(boxes1[:, :, None], boxes2[:, None], mode, aligned=True)
        torch.testing.assert_close(rotated_iou(boxes1, boxes2, mode), expected, rtol=0, atol=0)
    assert expected.shape == (2, 150, 100)
    assert 0.01 < (expected > 0).float().mean() < 0.5


def test_boxes_apart_share_exactly_nothing() -> None:
    """Not even rounding, so that a threshold of 0 means what it says."""
    iou, _ = exact_overlap(BOXES, OTHERS)
    result = rotated_iou(BOXES.double(), OTHERS.double(), aligned=True).numpy()
    np.testing.assert_array_equal(result > 0, iou > 1e-12)


def test_the_way_of_cuda_equals_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUDA_PAIRS", 700)  # several pieces, the last one smaller
    boxes1, boxes2 = BOXES[:50], OTHERS[:130]
    result = torch.empty(50, 130)
    module._fill_dense(result, columns_of(boxes1), columns_of(boxes2), "iou")
    torch.testing.assert_close(result, rotated_iou(boxes1, boxes2), rtol=0, atol=1e-7)


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="mode='giou': must be one of iou, iof"):
        rotated_iou(BOXES, BOXES, "giou")


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0)])
def test_no_boxes(rows: int, columns: int) -> None:
    assert rotated_iou(BOXES[:rows], BOXES[:columns]).shape == (rows, columns)
    assert rotated_iou(BOXES[None, :rows], BOXES[None, :columns]).shape == (1, rows, columns)
    assert rotated_iou(BOXES[:0], BOXES[:0], aligned=True).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_any_finite_box_gives_a_finite_overlap_and_gradient(mode: str, dtype: torch.dtype) -> None:
    boxes = extreme_boxes(700, dtype).requires_grad_()
    aligned = rotated_iou(boxes[:, None], boxes, mode, aligned=True)
    assert ((aligned >= 0) & (aligned <= 1)).all()
    (gradient,) = torch.autograd.grad(aligned.sum(), boxes)
    assert gradient.isfinite().all()
    torch.testing.assert_close(rotated_iou(boxes, boxes, mode), aligned.detach(), rtol=0, atol=0)


def test_any_box_with_an_area_is_equal_to_itself() -> None:
    """Also where it is smaller than the rounding of its place."""
    boxes = extreme_boxes(2000, torch.float32)
    low, high = boxes[:, 2:4].amin(1), boxes[:, 2:4].amax(1)
    itself = rotated_iou(boxes[:, None], boxes[:, None]).squeeze()
    has_area = (low > 0) & (high / low < 1e14)  # thinner ones are lost in the rounding
    assert has_area.sum() > 200
    assert torch.equal(itself[has_area], torch.ones(int(has_area.sum())))
    assert torch.equal(itself[low <= 0], torch.zeros(int((low <= 0).sum())))


def test_boxes_that_are_not_finite_overlap_nothing() -> None:
    boxes = BOXES[:4].clone()
    boxes[1, 2], boxes[2, 0] = float("nan"), float("inf")
    expected = rotated_iou(BOXES[:4], BOXES[:4])
    expected[1:3] = expected[:, 1:3] = 0
    torch.testing.assert_close(rotated_iou(boxes, boxes), expected, rtol=0, atol=0)
    assert torch.equal(
        rotated_iou(boxes, BOXES[:4], aligned=True) > 0, torch.tensor([True, False, False, True])
    )


@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_gradient(mode: str) -> None:
    boxes = random_boxes(60).double()
    others = moved(boxes, 3)
    assert (rotated_iou(boxes, others, mode, aligned=True) > 0.1).sum() > 30
    inputs = boxes.requires_grad_(), others.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rotated_iou(a, b, mode, aligned=True), inputs)


def test_gradient_of_degenerate_pairs_is_finite() -> None:
    zero = torch.zeros(1, 5)
    for first, second in ((BOXES, BOXES), (BOXES, swapped(BOXES)), (BOXES[:1], zero), (zero, zero)):
        boxes = first.clone().requires_grad_()
        rotated_iou(boxes, second, aligned=True).sum().backward()
        assert boxes.grad.isfinite().all()


class TestInvariance:
    """What must not change the overlap, on float64 boxes."""

    boxes1 = random_boxes(500, seed=2).double()
    boxes2 = moved(boxes1, 8)

    def check(self, boxes1: Tensor, boxes2: Tensor, mode: str = "iou", atol: float = 1e-12) -> None:
        expected = rotated_iou(self.boxes1, self.boxes2, mode)
        assert expected.diagonal().mean() > 0.1
        torch.testing.assert_close(rotated_iou(boxes1, boxes2, mode), expected, rtol=0, atol=atol)

    def test_symmetry(self) -> None:
        self.check(self.boxes1, self.boxes2)
        expected = rotated_iou(self.boxes1, self.boxes2)
        torch.testing.assert_close(rotated_iou(self.boxes2, self.boxes1).T, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("mode", ["iou", "iof"])
    @pytest.mark.parametrize("angle", [0.3, -2.0, math.pi / 2, 100.0])
    def test_rotation_of_both(self, angle: float, mode: str) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
        first, second = (
            turned(torch.cat((boxes[:, :2] @ matrix, boxes[:, 2:]), dim=1), angle)
            for boxes in (self.boxes1, self.boxes2)
        )
        self.check(first, second, mode)

    @pytest.mark.parametrize("mode", ["iou", "iof"])
    def test_translation_of_both(self, mode: str) -> None:
        shift = torch.tensor([1000.0, -500, 0, 0, 0])
        self.check(self.boxes1 + shift, self.boxes2 + shift, mode, atol=1e-11)

    @pytest.mark.parametrize("factor", [1e-6, 0.7, 1e6])
    def test_scale_of_both(self, factor: float) -> None:
        self.check(scaled(self.boxes1, factor), scaled(self.boxes2, factor))

    def test_mirroring_of_both(self) -> None:
        mirror = torch.tensor([-1, 1, 1, 1, -1])
        self.check(self.boxes1 * mirror, self.boxes2 * mirror)

    def test_half_turn_of_one(self) -> None:
        self.check(turned(self.boxes1, math.pi), self.boxes2)
        self.check(self.boxes1, turned(self.boxes2, -math.pi))

    def test_swapped_sides_of_one(self) -> None:
        self.check(swapped(self.boxes1), self.boxes2)
        self.check(self.boxes1, swapped(self.boxes2))


def test_overlapping_pairs_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (enclosing_boxes(columns_of(boxes[:700])) for boxes in (BOXES, OTHERS))
    expected = ((first[:, None, :2] <= second[:, 2:]) & (second[:, :2] <= first[:, None, 2:])).all(-1)
    monkeypatch.setattr("s5.ops.boxes.COLUMNS", 90)
    for count in (100, 999, 10**6):
        pieces = list(overlapping_pairs(first, second, count))
        assert [len(i) for i, _ in pieces[:-1]] == [count] * (len(pieces) - 1)
        found = torch.zeros(700, 700)
        for i, j in pieces:
            found[i, j] += 1
        torch.testing.assert_close(found, expected.float())


def test_golden_random(shared) -> None:
    golden = np.load(shared / "reference" / "golden" / "iou_random.npz")
    boxes1, boxes2 = torch.from_numpy(golden["a"]), torch.from_numpy(golden["b"])
    mirror = torch.tensor([1, 1, 1, 1, -1])
    for mode in ("iou", "iof"):
        ours = rotated_iou(boxes1, boxes2, mode)
        np.testing.assert_allclose(ours.numpy(), golden[mode], rtol=0, atol=2e-5)
        ours = rotated_iou(boxes1 * mirror, boxes2 * mirror, mode)
        np.testing.assert_allclose(ours.numpy(), golden[f"{mode}_ccw"], rtol=0, atol=2e-5)


def test_golden_special(shared) -> None:
    golden = np.load(shared / "reference" / "golden" / "iou_special.npz")
    boxes1, boxes2 = torch.from_numpy(golden["a"]), torch.from_numpy(golden["b"])
    exact = np.nan_to_num(golden["exact64"])  # no overlap where there is no area or no number
    exact[golden["names"] == "neg_w"] = 0
    np.testing.assert_allclose(rotated_iou(boxes1, boxes2, aligned=True).numpy(), exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rotated_iou(boxes1, boxes2).diagonal().numpy(), exact, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_cuda_equals_cpu_without_waiting() -> None:
    for dtype in (torch.float32, torch.float64):
        boxes1, boxes2 = BOXES[:900].to(dtype), OTHERS[:1500].to(dtype)
        on_gpu = boxes1.cuda(), boxes2.cuda()
        rotated_iou(*on_gpu)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = rotated_iou(*on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(result.cpu(), rotated_iou(boxes1, boxes2), rtol=0, atol=1e-6)
