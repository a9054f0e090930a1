"""Quotas of the clusters (Eq. 3), in integers: they add up exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from s5.errors import DataError

Unfilled = Literal["leave", "give"]


@dataclass(frozen=True)
class ClusterShare:
    """What one cluster contributes.

    Attributes:
        labeled: Labeled images in the cluster (N_l^m).
        quota: Patches that it should contribute.
        supply: Usable patches in it.
        chosen: Patches taken from it.
        given: How many of these were quota of clusters that could not fill it.
    """

    labeled: int
    quota: int
    supply: int
    chosen: int
    given: int


def apportion(weights: Sequence[int], count: int) -> list[int]:
    """Divide `count` in proportion to `weights`, by largest remainders; ties go to the lower position.

    Args:
        weights: At least one positive, none negative.
        count: What to divide.

    Returns:
        Integers that add up to `count`, each the exact share rounded down or up; 0 where the weight is 0.
    """
    total = sum(weights)
    shares = [count * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(count * weights[i] % total), i))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def share_out(
    labeled: Sequence[int], supply: Sequence[int], count: int, unfilled: Unfilled
) -> list[ClusterShare]:
    """Decide how many patches each cluster contributes.

    The quota of cluster m is `count * labeled[m] / sum(labeled)`. With `give`, what clusters cannot fill is
    divided among those with patches left, again in proportion to `labeled`, until none is missing. Clusters
    without labeled images give patches only when all others are exhausted, then in proportion to what they
    have. With `leave` it stays missing.

    Args:
        labeled: Labeled images of each cluster.
        supply: Usable patches of each cluster.
        count: Patches to choose (B_u).
        unfilled: What happens to the part of a quota that its cluster cannot fill.

    Raises:
        DataError: No cluster has labeled images.
    """
    labeled, supply = [int(n) for n in labeled], [int(n) for n in supply]
    if not any(labeled):
        raise DataError("no cluster has labeled images, so there are no quotas; run the cluster step again")
    quotas = apportion(labeled, count)
    chosen = [min(pair) for pair in zip(quotas, supply, strict=True)]
    if unfilled == "give":
        while (missing := count - sum(chosen)) > 0:
            room = [have - taken for have, taken in zip(supply, chosen, strict=True)]
            if not any(room):
                break
            weights = [n if left else 0 for n, left in zip(labeled, room, strict=True)]
            shares = apportion(weights if any(weights) else room, missing)
            chosen = [taken + min(s, left) for taken, s, left in zip(chosen, shares, room, strict=True)]
    return [
        ClusterShare(n, quota, have, taken, max(0, taken - quota))
        for n, quota, have, taken in zip(labeled, quotas, supply, chosen, strict=True)
    ]
