"""Quotas add up exactly, and what a cluster lacks is given to the others."""

import random

import pytest

from s5.curate.quotas import apportion, share_out
from s5.errors import DataError


def chosen(labeled: list[int], supply: list[int], count: int, unfilled: str = "give") -> list[int]:
    return [share.chosen for share in share_out(labeled, supply, count, unfilled)]


def test_largest_remainders_are_rounded_up() -> None:
    assert apportion([5, 3, 1], 10) == [6, 3, 1]  # 5.56, 3.33, 1.11
    assert apportion([1, 1, 1], 10) == [4, 3, 3], "ties go to the lower cluster"
    assert apportion([0, 2, 0, 1], 4) == [0, 3, 0, 1]
    assert apportion([10**15, 10**15 - 1], 10**12 + 1) == [5 * 10**11 + 1, 5 * 10**11], "no floats"


def test_shares_add_up_and_are_within_one_of_exact() -> None:
    rng = random.Random(0)
    for _ in range(300):
        weights = [rng.randrange(50) for _ in range(rng.randrange(1, 20))] + [1]
        count = rng.randrange(1000)
        shares = apportion(weights, count)
        assert sum(shares) == count
        for weight, share in zip(weights, shares, strict=True):
            assert abs(share - count * weight / sum(weights)) < 1
            assert weight or not share


def test_missing_patches_are_left_or_given_in_proportion() -> None:
    assert chosen([4, 2, 2], [5, 100, 100], 40, "leave") == [5, 10, 10]
    assert chosen([4, 2, 2], [5, 100, 100], 40) == [5, 18, 17]
    shares = share_out([4, 2, 2], [5, 100, 100], 40, "give")
    assert [share.quota for share in shares] == [20, 10, 10]
    assert [share.given for share in shares] == [0, 8, 7]


def test_giving_is_repeated_until_the_others_are_exhausted() -> None:
    assert chosen([8, 1, 1], [0, 2, 50], 20) == [0, 2, 18]


def test_clusters_without_labels_come_last() -> None:
    assert chosen([1, 0, 1, 0], [10, 30, 10, 10], 20) == [10, 0, 10, 0]
    assert chosen([1, 0, 1, 0], [10, 30, 10, 10], 24) == [10, 3, 10, 1]
    assert chosen([1, 0, 1, 0], [10, 30, 10, 10], 60) == [10, 30, 10, 10]
    assert chosen([1, 0, 1, 0], [10, 30, 10, 10], 24, "leave") == [10, 0, 10, 0]


def test_every_patch_that_exists_can_be_chosen() -> None:
    rng = random.Random(1)
    for _ in range(300):
        size = rng.randrange(1, 12)
        labeled = [rng.choice([0, rng.randrange(30)]) for _ in range(size - 1)] + [1]
        supply = [rng.choice([0, rng.randrange(60)]) for _ in range(size)]
        count = rng.randrange(sum(supply) + 1)
        shares = share_out(labeled, supply, count, "give")
        assert sum(share.chosen for share in shares) == count
        for share in shares:
            assert min(share.quota, share.supply) <= share.chosen <= share.supply
            assert share.given == max(0, share.chosen - share.quota)


def test_no_labeled_images() -> None:
    with pytest.raises(DataError, match="no cluster has labeled images.*run the cluster step again"):
        share_out([0, 0], [5, 5], 3, "give")
