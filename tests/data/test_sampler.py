"""The multi-source sampler: fixed composition, exact resume, disjoint processes."""

from itertools import islice

import pytest

from s5.data.sampler import MultiSourceSampler
from s5.errors import DataError


def take(sampler: MultiSourceSampler, steps: int) -> list:
    return list(islice(iter(sampler), steps * sampler.batch_size))


def test_every_batch_has_the_fixed_composition() -> None:
    draws = take(MultiSourceSampler([7, 20], [2, 3], seed=1), 6)
    for start in range(0, len(draws), 5):
        assert [d.source for d in draws[start : start + 5]] == [0, 0, 1, 1, 1]


def test_each_source_is_cycled_without_repetition() -> None:
    draws = [d for d in take(MultiSourceSampler([6, 9], [2, 3]), 6) if d.source == 0]
    assert sorted(d.item for d in draws[:6]) == list(range(6))
    assert sorted(d.item for d in draws[6:]) == list(range(6))
    assert [d.item for d in draws[:6]] != [d.item for d in draws[6:]]


def test_skip_equals_drawing() -> None:
    expected = take(MultiSourceSampler([7, 20], [2, 3], seed=3), 10)[4 * 5 :]
    resumed = MultiSourceSampler([7, 20], [2, 3], seed=3)
    resumed.skip(4 * resumed.batch_size)
    assert take(resumed, 6) == expected


def test_processes_share_one_order() -> None:
    single = [d for d in take(MultiSourceSampler([8], [4], seed=5), 4)]
    ranks = [take(MultiSourceSampler([8], [2], seed=5, rank=r, world_size=2), 4) for r in range(2)]
    merged = [d for step in range(4) for rank in ranks for d in rank[2 * step : 2 * step + 2]]
    assert merged == single


def test_resume_with_other_number_of_processes_goes_on_in_the_order() -> None:
    single = take(MultiSourceSampler([30], [2], seed=5), 8)
    before = MultiSourceSampler([30], [1], seed=5, rank=0, world_size=2)
    assert before.consumed(3) == [6]
    after = MultiSourceSampler([30], [2], seed=5)
    after.resume_at(3, before.consumed(3))
    after.skip(3 * after.batch_size)
    assert take(after, 5) == single[6:]


def test_too_few_images_names_numbers_and_way_out() -> None:
    with pytest.raises(DataError, match=r"labeled: 5 images.*3 per process x 2.*6.*Reduce the batch size"):
        MultiSourceSampler([5], [3], world_size=2, names=["labeled"])


def test_source_that_starts_later_is_none_before_and_begins_at_its_first_image() -> None:
    late = MultiSourceSampler([6, 6], [2, 1], seed=3, world_size=2, starts=[0, 4])
    always = MultiSourceSampler([6, 6], [2, 1], seed=3, world_size=2)
    for step in range(4):
        assert late.batch(step) == [*always.batch(step)[:2], None]
    for step in range(4, 9):
        assert late.batch(step)[:2] == always.batch(step)[:2]
        assert late.batch(step)[2] == always.batch(step - 4)[2]
    assert late.consumed(3) == [12, 0] and late.consumed(6) == [24, 4]


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_late_start_survives_a_resume_with_other_processes(stop: int) -> None:
    first = MultiSourceSampler([50, 50], [2, 1], seed=3, world_size=2, starts=[0, 4])
    resumed = MultiSourceSampler([50, 50], [2, 1], seed=3, world_size=1, starts=[0, 4])
    resumed.resume_at(stop, first.consumed(stop))
    assert resumed.consumed(stop) == first.consumed(stop)
    draws = [resumed.batch(step)[2] for step in range(stop, 8)]
    assert [draw is None for draw in draws] == [step < 4 for step in range(stop, 8)]
    positions = [draw.position for draw in draws if draw is not None]
    begin = 2 * max(stop - 4, 0)
    assert positions == list(range(begin, begin + len(positions)))
