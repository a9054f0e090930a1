"""Random draws: keyed by seed, source and position; ranges and rates."""

import numpy as np
import pytest

from s5.data.augmentation import (
    StrongAugmentation,
    derangement,
    draw_cutmix_box,
    draw_photometric,
    sample_rng,
)

CFG = StrongAugmentation()
NEUTRAL = np.array([1, 1, 1, 0, 0, 0], np.float32)


def test_same_key_same_draws() -> None:
    assert np.array_equal(sample_rng(3, 1, 99).random(5), sample_rng(3, 1, 99).random(5))


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (0, 0, 10**9), (2**40, 0, 0)]
    assert len({sample_rng(*key).random() for key in keys}) == len(keys)


def test_neighbouring_positions_are_independent() -> None:
    draws = np.stack([sample_rng(0, 0, position).random(2) for position in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.06


def test_photometric_ranges_and_rates() -> None:
    rng = sample_rng(0, 0, 0)
    rows = np.stack([draw_photometric(rng, CFG) for _ in range(4000)])
    assert rows.dtype == np.float32 and rows.shape == (4000, 6)
    jittered = rows[:, 0] != 1
    assert jittered.mean() == pytest.approx(0.8, abs=0.03)
    for column, (low, high) in enumerate([(0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (-0.25, 0.25)]):
        values = rows[jittered, column]
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
        assert np.array_equal(rows[~jittered, column], np.full((~jittered).sum(), NEUTRAL[column]))
    assert set(rows[:, 4]) == {0, 1}
    assert rows[:, 4].mean() == pytest.approx(0.2, abs=0.03)
    blurred = rows[:, 5] > 0
    assert blurred.mean() == pytest.approx(0.5, abs=0.03)
    assert 0.1 <= rows[blurred, 5].min() < 0.12 and 1.98 < rows[:, 5].max() <= 2.0


def test_nothing_drawn_is_neutral() -> None:
    cfg = StrongAugmentation(jitter_p=0, gray_p=0, blur_p=0)
    assert np.array_equal(draw_photometric(sample_rng(0, 0, 0), cfg), NEUTRAL)


def test_factors_are_never_negative() -> None:
    cfg = StrongAugmentation(brightness=3, contrast=3, saturation=3, jitter_p=1)
    rows = np.stack([draw_photometric(sample_rng(0, 0, i), cfg) for i in range(100)])
    assert rows[:, :3].min() == 0


@pytest.mark.parametrize("size", [32, 512])
def test_cutmix_boxes(size: int) -> None:
    rng = sample_rng(0, 0, 0)
    boxes = np.stack([draw_cutmix_box(rng, size, CFG) for _ in range(2000)])
    x0, y0, x1, y1 = boxes.T
    pasted = x1 > x0
    assert boxes.dtype == np.int64
    assert pasted.mean() == pytest.approx(0.5, abs=0.04)
    assert not boxes[~pasted].any()
    assert boxes.min() >= 0 and boxes.max() <= size
    width, height = (x1 - x0)[pasted], (y1 - y0)[pasted]
    area = width * height / size**2
    one_pixel = 2 / size  # sides are cut to whole pixels
    assert area.max() <= 0.4 and area.min() > 0.02 - one_pixel
    aspect = height / width
    assert 0.3 * (1 - 8 * one_pixel) < aspect.min() and aspect.max() < (1 + 8 * one_pixel) / 0.3


@pytest.mark.parametrize("n", [2, 3, 12, 101])
def test_derangement_has_no_fixed_point(n: int) -> None:
    for position in range(50):
        partner = derangement(sample_rng(0, 0, position), n)
        assert partner.dtype == np.int64
        assert sorted(partner) == list(range(n))
        assert (partner != np.arange(n)).all()


def test_derangement_reaches_every_partner() -> None:
    partners = np.stack([derangement(sample_rng(0, 0, i), 4) for i in range(300)])
    for index in range(4):
        assert set(partners[:, index]) == set(range(4)) - {index}


def test_derangement_of_one_is_itself() -> None:
    assert derangement(sample_rng(0, 0, 0), 1).tolist() == [0]
