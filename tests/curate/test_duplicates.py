"""Near-duplicates: the same as comparing all pairs."""

from itertools import combinations

import numpy as np
import pytest

from s5.curate.duplicates import Pairs, band_masks, find_duplicates
from tests.curate.runs import near_pairs  # skips without the optional packages

duckdb = pytest.importorskip("duckdb", reason="curation needs duckdb: pip install -e '.[curate]'")


def planted(count: int, seed: int) -> list[dict]:
    """Random hashes; a third are copies of others with up to 5 bits changed, some are null."""
    rng = np.random.default_rng(seed)
    hashes = [int(h) for h in rng.integers(0, 2**64, count, dtype=np.uint64)]
    for i in range(count // 3):
        hashes[i] = hashes[int(rng.integers(count))]
        for bit in rng.choice(64, int(rng.integers(6)), replace=False):
            hashes[i] ^= 1 << int(bit)
    order = rng.permutation(count).tolist()
    rows = [
        {"patch": i, "entropy": entropy, "key": 0, "name": "", "source": "abc"[i % 3], "phash": phash}
        for i, (phash, entropy) in enumerate(zip(hashes, order, strict=True))
    ]
    rows[0]["phash"] = rows[1]["phash"] = None
    rows[2]["phash"], rows[3]["phash"], rows[4]["phash"] = 0, 2**64 - 1, 2**63
    return rows


@pytest.mark.parametrize("distance", range(4))
def test_the_same_as_all_pairs(distance: int) -> None:
    rows = planted(600, seed=distance)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE ordered (patch BIGINT, place BIGINT, source VARCHAR, phash UBIGINT)")
        values = [(row["patch"], row["entropy"], row["source"], row["phash"]) for row in rows]
        connection.executemany("INSERT INTO ordered VALUES (?, ?, ?, ?)", values)
        pairs = find_duplicates(connection, distance)
        found = [patch for (patch,) in connection.execute("SELECT patch FROM duplicates").fetchall()]
    expected = near_pairs(rows, distance)
    assert len(found) == len(set(found))
    assert set(found) == {worse["patch"] for _, worse in expected} and len(found) > 20
    within = sum(a["source"] == b["source"] for a, b in expected)
    assert pairs == Pairs(within, len(expected) - within)


def test_a_chain_loses_all_but_the_best() -> None:
    """The second is near the first and the third near the second, but not near the first."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE ordered AS SELECT * FROM (VALUES (10, 1, 'a', 0::UBIGINT), "
            "(11, 2, 'a', 3::UBIGINT), (12, 3, 'b', 15::UBIGINT)) AS t (patch, place, source, phash)"
        )
        assert find_duplicates(connection, 2) == Pairs(1, 1)
        assert connection.execute("SELECT patch FROM duplicates ORDER BY patch").fetchall() == [(11,), (12,)]


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_masks_miss_no_difference(distance: int) -> None:
    masks = band_masks(distance)
    edges = {0, 63, *(bit for mask in masks for bit in range(64) if mask >> bit & 1 != mask >> (bit + 1) & 1)}
    bits = sorted(edges | {bit + 1 for bit in edges if bit < 63})  # the first and last of every band
    for changed in combinations(bits, distance):
        difference = sum(1 << bit for bit in changed)
        assert any(difference & mask == 0 for mask in masks)
