"""Shards of a run, as the steps score and cluster write them, and a direct implementation of selecting."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="curation needs pyarrow: pip install -e '.[curate]'")
pytest.importorskip("duckdb", reason="curation needs duckdb: pip install -e '.[curate]'")
pq = pytest.importorskip("pyarrow.parquet")

SCORES = pa.schema(
    [
        ("patch", pa.int64()),
        ("key", pa.uint64()),
        ("source", pa.string()),
        ("name", pa.string()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("valid", pa.float32()),
        ("deviation", pa.float32()),
        ("sharpness", pa.float32()),
        ("phash", pa.uint64()),
        ("entropy", pa.float32()),
        ("classes", pa.list_(pa.int32())),
        ("feature", pa.list_(pa.float16(), 4)),
        ("error", pa.string()),
    ]
)
CLUSTERS = pa.schema([("patch", pa.int64()), ("cluster", pa.int32()), ("similarity", pa.float32())])

Row = dict[str, object]


def make_row(patch: int, **changes: object) -> Row:
    """A usable patch that is no duplicate of one with another number."""
    row: Row = {"patch": patch, "key": patch, "source": "a", "name": f"a/{patch}.jpg", "left": 0, "top": 0}
    row |= {
        "width": 64,
        "height": 64,
        "valid": 1.0,
        "deviation": 40.0,
        "sharpness": 1.0,
        "phash": patch * 0x9E3779B97F4A7C15 % 2**64,
    }
    row |= {"entropy": 0.1 * patch, "classes": [4096, 0], "feature": np.zeros(4, np.float16), "error": None}
    return row | {"cluster": 0, "similarity": 0.5} | changes


def random_rows(count: int, seed: int = 0, clusters: int = 5) -> list[Row]:
    """Patches of every kind: ties, near-duplicates within and across sources, unreadable and blank ones."""
    rng = np.random.default_rng(seed)
    hashes = [int(h) for h in rng.integers(0, 2**64, max(2, count // 2), dtype=np.uint64)]
    rows = []
    for patch in range(count):
        phash = hashes[rng.integers(len(hashes))]
        for _ in range(rng.integers(4)):
            phash ^= 1 << int(rng.integers(64))
        row = make_row(
            patch,
            key=int(rng.integers(3)),
            source="ab"[rng.integers(2)],
            name=f"{rng.integers(1e9)}é {patch}.jpg",
            phash=None if rng.random() < 0.05 else phash,
            entropy=float(np.float32(rng.integers(1, 20) / 10)),
            valid=float(rng.choice([1.0, 0.5, 0.2], p=[0.8, 0.1, 0.1])),
            deviation=float(rng.choice([40.0, 0.5], p=[0.9, 0.1])),
            cluster=int(min(rng.geometric(0.4), clusters) - 1),
        )
        if rng.random() < 0.05:
            row |= {"error": "truncated", "entropy": None, "phash": None, "cluster": None, "similarity": None}
        rows.append(row)
    return rows


def write_run(run: Path, rows: Sequence[Row], shard: int = 40) -> Path:
    """Write score and cluster shards of `shard` rows; unreadable patches have no row in clusters."""
    for step, schema in (("scores", SCORES), ("clusters", CLUSTERS)):
        (run / step).mkdir(parents=True)
        for i in range(0, len(rows), shard):
            part = rows[i : i + shard]
            if step == "clusters":
                part = [row for row in part if row["cluster"] is not None]
            columns = [
                pa.array([row[name] for row in part], schema.field(name).type) for name in schema.names
            ]
            pq.write_table(pa.table(columns, schema=schema), run / step / f"{i // shard:06d}.parquet")
    return run


def read_table(run: Path) -> list[Row]:
    """The rows of `patches.parquet`."""
    return pq.read_table(run / "patches.parquet").to_pylist()


def place(row: Row) -> tuple:
    """What the order of patches is by."""
    return row["entropy"], row["key"], row["name"]


def near_pairs(rows: Sequence[Row], distance: int) -> list[tuple[Row, Row]]:
    """Pairs of near-duplicates, the better one first."""
    hashed = sorted((row for row in rows if row["phash"] is not None), key=place)
    return [(a, b) for a, b in combinations(hashed, 2) if (a["phash"] ^ b["phash"]).bit_count() <= distance]


def walk(rows: Sequence[Row], quotas: Sequence[int], distance: int | None, limit: float) -> dict[int, str]:
    """The paper's rule: up the global ranking, a patch is taken while its cluster has quota left.

    Args:
        rows: Patches.
        quotas: Patches to take from each cluster.
        distance: Bits between near-duplicates; None: they are kept.
        limit: Largest entropy.

    Returns:
        The reason of each patch.
    """
    reasons = {}
    for row in rows:
        tests = {"unreadable": row["error"], "no data": row["valid"] < 0.5, "constant": row["deviation"] < 2}
        reasons[row["patch"]] = next((reason for reason, failed in tests.items() if failed), "")
    ranking = sorted((row for row in rows if not reasons[row["patch"]]), key=place)
    worse = set() if distance is None else {b["patch"] for _, b in near_pairs(ranking, distance)}
    left = list(quotas)
    for row in ranking:
        patch, cluster = row["patch"], row["cluster"]
        if patch in worse:
            reasons[patch] = "duplicate"
        elif row["entropy"] > limit:
            reasons[patch] = "entropy"
        else:
            reasons[patch] = "chosen" if left[cluster] else "quota"
            left[cluster] -= left[cluster] > 0
    return reasons
