"""Selecting: the paper's rule, whatever the order of the patches, and errors that say what to do."""

import json
import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from math import inf
from pathlib import Path

import numpy as np
import pytest

from s5.curate.duplicates import Pairs
from s5.curate.quotas import ClusterShare
from s5.curate.select import REASONS, Selection, SelectSettings, select
from s5.errors import ConfigError, DataError
from tests.curate.runs import (
    Row,
    make_row,
    near_pairs,
    pa,
    place,
    pq,
    random_rows,
    read_table,
    walk,
    write_run,
)

LABELED = (40, 20, 10, 7, 3)


def run_select(run: Path, labeled: tuple[int, ...] = LABELED, **settings: object) -> Selection:
    return select(run, labeled, SelectSettings(**{"count": 100, "threads": 1, **settings}))


def reasons_of(run: Path) -> dict[int, str]:
    return {row["patch"]: row["reason"] for row in read_table(run)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("duplicates, limit", [("drop", None), ("drop", 1.25), ("keep", 1.25)])
def test_the_rule_of_the_paper(tmp_path: Path, seed: int, duplicates: str, limit: float | None) -> None:
    rows = random_rows(700, seed)
    run = write_run(tmp_path, rows)
    result = run_select(run, unfilled="leave", duplicates=duplicates, max_entropy=limit)
    quotas = [share.quota for share in result.clusters]
    assert sum(quotas) == 100
    expected = walk(rows, quotas, 2 if duplicates == "drop" else None, limit or inf)
    assert reasons_of(run) == expected
    assert result.reasons == {reason: list(expected.values()).count(reason) for reason in REASONS}
    assert len(set(expected.values())) == 6 if limit is None or duplicates == "keep" else 7


def test_what_is_reported(tmp_path: Path) -> None:
    rows = random_rows(700)
    run = write_run(tmp_path, rows)
    result = run_select(run)
    table = read_table(run)
    usable = [row for row in table if row["reason"] in ("chosen", "quota")]
    picked = [row for row in table if row["reason"] == "chosen"]
    assert len(picked) == 100 == result.reasons["chosen"]
    assert result.cut == max(row["entropy"] for row in picked)
    for name, group in (("supply", usable), ("chosen", picked)):
        counts = Counter(row["cluster"] for row in group)
        assert [getattr(share, name) for share in result.clusters] == [counts[m] for m in range(5)]
    comparable = [
        row for row in rows if row["error"] is None and row["valid"] >= 0.5 and row["deviation"] >= 2
    ]
    pairs = near_pairs(comparable, 2)
    within = sum(a["source"] == b["source"] for a, b in pairs)
    assert result.pairs == Pairs(within, len(pairs) - within)
    assert run_select(run, duplicates="keep").pairs == result.pairs
    assert json.loads(json.dumps(asdict(result)))["pairs"] == {
        "within": within,
        "across": len(pairs) - within,
    }


def test_limits_of_sharpness_and_similarity(tmp_path: Path) -> None:
    values = [(0.1, 0.9), (0.2, 0.9), (3.0, 0.9), (3.1, 0.9), (1.0, 0.79), (1.0, 0.8), (1.0, None)]
    rows = [
        make_row(i, phash=1 << 8 * i, sharpness=sharpness, similarity=similarity)
        for i, (sharpness, similarity) in enumerate(values)
    ]
    limits = {"min_sharpness": 0.2, "max_sharpness": 3.0, "min_similarity": 0.8}
    run = write_run(tmp_path, rows)
    result = run_select(run, count=3, duplicates="keep", **limits)
    expected = ["blurred", "chosen", "chosen", "noise", "foreign", "chosen", "quota"]
    assert [row["reason"] for row in read_table(run)] == expected
    assert result.reasons["foreign"] == 1


def test_the_table(tmp_path: Path) -> None:
    rows = {row["patch"]: row for row in random_rows(300)}
    run = write_run(tmp_path, list(rows.values()))
    run_select(run, count=30)
    table = pq.read_table(run / "patches.parquet")
    columns = (
        "patch key source name left top width height valid deviation sharpness phash entropy classes error"
    )
    assert table.schema.names == [*columns.split(), "cluster", "similarity", "rank", "reason"]
    written = table.to_pylist()
    assert [row["patch"] for row in written] == list(rows)
    for row in written:
        for name in (*columns.split(), "cluster", "similarity"):
            if isinstance(value := rows[row["patch"]][name], float):
                value = float(np.float32(value))
            assert row[name] == value
    for cluster in range(5):
        ranking = [row for row in written if row["rank"] is not None and row["cluster"] == cluster]
        ranking.sort(key=place)
        assert [row["rank"] for row in ranking] == list(range(1, len(ranking) + 1))
    assert {row["reason"] for row in written if row["rank"] is not None} == {"chosen", "quota"}
    assert "NaN" not in str(written)


@pytest.mark.parametrize("shard, threads, limit", [(700, 1, "2GB"), (13, 2, "200MB")])
def test_order_shards_and_threads_do_not_matter(tmp_path: Path, shard: int, threads: int, limit: str) -> None:
    rows = random_rows(700)
    first, second = write_run(tmp_path / "a", rows), tmp_path / "b"
    expected = run_select(first)
    random.Random(1).shuffle(rows)
    write_run(second, rows, shard)
    assert run_select(second, threads=threads, memory_limit=limit) == expected
    tables = [sorted(read_table(run), key=lambda row: row["patch"]) for run in (first, second)]
    assert tables[0] == tables[1]


def test_numbers_of_the_patches_do_not_matter(tmp_path: Path) -> None:
    rows = random_rows(700)
    results = []
    for name in "ab":
        run = write_run(tmp_path / name, rows)
        results.append((run_select(run), {row["name"]: row["reason"] for row in read_table(run)}))
        numbers = list(range(700))
        random.Random(2).shuffle(numbers)
        rows = [row | {"patch": number} for row, number in zip(rows, numbers, strict=True)]
    assert results[0] == results[1]


def test_the_same_file_when_repeated(tmp_path: Path) -> None:
    run = write_run(tmp_path, random_rows(500))
    files = []
    for threads in (1, 2):
        run_select(run, threads=threads)
        files.append((run / "patches.parquet").read_bytes())
    assert files[0] == files[1]


def test_a_cluster_that_cannot_fill_its_quota(tmp_path: Path) -> None:
    rows = [make_row(i, cluster=int(i >= 5)) for i in range(60)]
    run = write_run(tmp_path, rows)
    result = run_select(run, (1, 1), count=40, unfilled="leave")
    assert result.reasons["chosen"] == 25 and "15 patches were not chosen" in result.notes[0]
    result = run_select(run, (1, 1), count=40)
    assert result.reasons["chosen"] == 40 and "15 patches were taken from other clusters" in result.notes[0]
    assert result.clusters == (ClusterShare(1, 20, 5, 5, 0), ClusterShare(1, 20, 55, 35, 15))


def test_all_patches_in_one_cluster(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path, [make_row(i, cluster=2) for i in range(60)])
    result = run_select(run, count=40)
    assert result.reasons["chosen"] == 40
    assert [patch for patch, reason in reasons_of(run).items() if reason == "chosen"] == list(range(40))
    assert result.notes[0] == "All usable patches are in cluster 2: the quotas have no effect."
    assert result.notes[0] in caplog.messages


def test_equal_files_under_two_sources(tmp_path: Path) -> None:
    """The name of the source tells them apart, then the number."""
    rows = [make_row(i, entropy=0.5, key=1, name="x.jpg", phash=None, source="ab"[i % 2]) for i in range(10)]
    run_select(write_run(tmp_path, rows), count=4)
    assert [row["rank"] for row in read_table(tmp_path)] == [1, 6, 2, 7, 3, 8, 4, 9, 5, 10]


def test_a_path_with_special_characters(tmp_path: Path) -> None:
    rows = random_rows(300)
    write_run(tmp_path / "it's [b] bü* 影", [make_row(0)])  # matches the name below as a pattern
    run = write_run(tmp_path / "it's [ab] bü* 影?", rows)
    assert sum(run_select(run, count=30).reasons.values()) == 300


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_rows(300))
    (run / ".duckdb").mkdir()  # of a killed run
    (run / ".duckdb/spilled.tmp").write_text("half")
    run_select(run, count=30)
    before = (run / "patches.parquet").read_bytes()
    with pytest.raises(DataError):
        run_select(run, count=301)
    assert sorted(path.name for path in run.iterdir()) == ["clusters", "patches.parquet", "scores"]
    assert (run / "patches.parquet").read_bytes() == before


def test_progress_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run_select(write_run(tmp_path, random_rows(300)), count=30)
    assert any("read 300 patches of 8 shards" in message for message in caplog.messages)
    assert any("comparison 6 of 6" in message for message in caplog.messages)


def damage_column(path: Path, name: str) -> None:
    """Overwrite the data of a column, and leave the footer as it is."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    column = next(
        group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith(name)
    )
    starts = [column.data_page_offset, column.dictionary_page_offset]
    with path.open("r+b") as file:
        file.seek(min(start for start in starts if start))
        file.write(b"\xff" * column.total_compressed_size)


def test_features_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, random_rows(300))
    damage_column(run / "scores/000003.parquet", "feature")
    assert run_select(run, count=30).reasons["chosen"] == 30


def no_scores(run: Path) -> None:
    shutil.rmtree(run / "scores")


def no_cluster_shard(run: Path) -> None:
    (run / "clusters/000001.parquet").unlink()


def no_score_shard(run: Path) -> None:
    (run / "scores/000001.parquet").unlink()


def truncated(run: Path) -> None:
    path = run / "scores/000001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_clusters(run: Path) -> None:
    path = run / "clusters/000001.parquet"
    path.write_bytes(path.read_bytes()[:50])


def damaged(run: Path) -> None:
    damage_column(run / "scores/000001.parquet", "entropy")


def damaged_classes(run: Path) -> None:
    damage_column(run / "scores/000001.parquet", "classes")


def foreign(run: Path) -> None:
    pq.write_table(pa.table({"patch": [1], "key": ["a"]}), run / "scores/000001.parquet")


def not_parquet(run: Path) -> None:
    (run / "scores/000001.parquet").write_text("patch,key")


def other_columns(run: Path) -> None:
    path = run / "scores/000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns("classes"), path)


def a_shard_twice(run: Path) -> None:
    for step in ("scores", "clusters"):
        shutil.copy(run / step / "000001.parquet", run / step / "000009.parquet")


def lost_clusters(run: Path) -> None:
    path = run / "clusters/000001.parquet"
    pq.write_table(pq.read_table(path).slice(30), path)


DELETE_SCORE = r"scores/000001.parquet: .*; delete it and run the score step again"


@pytest.mark.parametrize(
    "harm, message",
    [
        (no_scores, r"scores: no score shards \(\*.parquet\); run the score step first"),
        (no_cluster_shard, "only one has 000001.parquet; run the cluster step again"),
        (no_score_shard, "only one has 000001.parquet; run the cluster step again"),
        (truncated, DELETE_SCORE),
        (truncated_clusters, "clusters/000001.parquet: .*; delete it and run the cluster step again"),
        (damaged, DELETE_SCORE),
        (damaged_classes, DELETE_SCORE),
        (foreign, "key is string instead of uint64, source is missing.*" + DELETE_SCORE.partition(": ")[2]),
        (not_parquet, DELETE_SCORE),
        (other_columns, "its columns differ from those of 000000.parquet; delete it"),
        (a_shard_twice, "numbers are repeated. Delete scores and clusters"),
        (lost_clusters, r"\d+ usable patches have no cluster; run the cluster step again"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_shards(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    run = write_run(tmp_path, random_rows(300))
    harm(run)
    with pytest.raises(DataError, match=message):
        run_select(run, count=30)
    assert not (run / "patches.parquet").exists()


def test_quotas_for_another_number_of_clusters(tmp_path: Path) -> None:
    run = write_run(tmp_path, random_rows(300))
    with pytest.raises(DataError, match="has clusters 0 to 4, but there are quotas for 4, 0 to 3"):
        run_select(run, LABELED[:4], count=30)


@pytest.mark.parametrize("unfilled", ["leave", "give"])
def test_fewer_usable_patches_than_asked_for(tmp_path: Path, unfilled: str) -> None:
    rows: list[Row] = [make_row(i) for i in range(50)]
    rows += [make_row(50, error="truncated", entropy=None), make_row(51, valid=0.1), make_row(52, valid=0.2)]
    run = write_run(tmp_path, rows)
    message = (
        r"49 usable patches, fewer than select.count 50 \(not usable: 1 unreadable, 2 no data, 1 entropy\)"
    )
    with pytest.raises(DataError, match=message + r"\. Lower select.count"):
        run_select(run, (1,), count=50, unfilled=unfilled, max_entropy=4.85)
    assert run_select(run, (1,), count=49, unfilled=unfilled, max_entropy=4.85).reasons["chosen"] == 49


def test_memory_limits(tmp_path: Path) -> None:
    run = write_run(tmp_path, random_rows(300))
    with pytest.raises(ConfigError, match="select.memory_limit: 'much'"):
        run_select(run, memory_limit="much")
    with pytest.raises(DataError, match="Raise the limit, lower select.threads, or free disk space"):
        run_select(run, memory_limit="1MB")


@pytest.mark.parametrize("module", ["duckdb", "pyarrow"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    run = write_run(tmp_path, random_rows(300))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"curation needs {module}: pip install -e '.\[curate\]'"):
        run_select(run)


def test_nothing_is_chosen_where_no_cluster_with_patches_has_a_quota(tmp_path: Path) -> None:
    run = write_run(tmp_path, [make_row(i) for i in range(50)])
    result = run_select(run, (0, 7), count=40, unfilled="leave")
    assert (result.reasons["chosen"], result.cut) == (0, None)
    assert run_select(run, (0, 7), count=40).reasons["chosen"] == 40
