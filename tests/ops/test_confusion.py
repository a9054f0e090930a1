"""Confusion matrix and scores."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from s5.ops.confusion import confusion_matrix, scores


def test_areas_are_the_published_ones(shared: Path) -> None:
    golden = np.load(shared / "reference" / "golden" / "golden_losses.npz")
    prediction = torch.from_numpy(golden["logits_s"]).argmax(1)
    matrix = confusion_matrix(prediction, torch.from_numpy(golden["label_l"]), 5).numpy()
    target, predicted, hit = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    assert np.array_equal(hit, golden["area_inter"])
    assert np.array_equal(target, golden["area_target"])
    assert np.array_equal(predicted, golden["area_pred"])
    assert np.array_equal(target + predicted - hit, golden["area_union"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_rows_are_targets_and_ignored_pixels_count_nowhere(dtype: torch.dtype) -> None:
    target = torch.tensor([[0, 0, 1, 2, 255, 255]], dtype=dtype)
    prediction = torch.tensor([[0, 1, 1, 0, 2, 0]], dtype=dtype)
    expected = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    matrix = confusion_matrix(prediction, target, 3)
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, expected)


def test_against_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 16, (2, 33, 47), generator=generator)
    target[0, :5] = 255
    prediction = torch.randint(0, 16, (2, 33, 47), generator=generator)
    expected = [[((target == t) & (prediction == p)).sum().item() for p in range(16)] for t in range(16)]
    assert confusion_matrix(prediction, target, 16).tolist() == expected


def test_all_ignored_counts_nothing() -> None:
    matrix = confusion_matrix(torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255), 3)
    assert not matrix.any()


@pytest.mark.parametrize("value", [3, 200, -1])
def test_target_outside_the_classes_is_an_error(value: int) -> None:
    with pytest.raises(RuntimeError):
        confusion_matrix(torch.zeros(4, dtype=torch.int64), torch.full((4,), value), 3)


def test_scores_by_hand() -> None:
    result = scores(torch.tensor([[5, 1, 0], [2, 2, 0], [0, 0, 0]]), background=0)
    assert result["IoU"][:2] == pytest.approx([5 / 8, 2 / 5])
    assert result["F1"][:2] == pytest.approx([10 / 13, 4 / 7])
    assert result["Acc"][:2] == pytest.approx([5 / 6, 1 / 2])
    assert result["Precision"][:2] == pytest.approx([5 / 7, 2 / 3])
    assert result["Recall"][:2] == result["Acc"][:2]
    assert all(math.isnan(result[name][2]) for name in ("IoU", "F1", "Acc", "Precision", "Recall"))
    assert result["mIoU"] == pytest.approx((5 / 8 + 2 / 5) / 2)
    assert result["mAcc"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert result["aAcc"] == pytest.approx(0.7)
    assert result["aAcc_no_background"] == pytest.approx(0.5)
    assert result["mIoU_no_background"] == pytest.approx(0.4)


def test_class_only_predicted_counts_as_zero() -> None:
    result = scores(torch.tensor([[4, 4], [0, 0]]))
    assert result["IoU"] == [0.5, 0]
    assert result["mIoU"] == 0.25
    assert math.isnan(result["Acc"][1]) and result["mAcc"] == 0.5


def test_without_background_no_such_entry() -> None:
    assert not [name for name in scores(torch.eye(3, dtype=torch.int64)) if "background" in name]


def test_matrices_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    target, prediction = torch.randint(0, 4, (2, 6, 9, 9), generator=generator)
    parts = sum(confusion_matrix(p, t, 4) for p, t in zip(prediction, target, strict=True))
    assert torch.equal(parts, confusion_matrix(prediction, target, 4))
