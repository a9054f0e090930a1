"""Select: the most certain patches, as many of each cluster as its quota says (Eq. 2 and 3).

Reads the shards in `scores/` and `clusters/` of a run and writes its table `patches.parquet`. DuckDB does the
work with a fixed memory limit and moves to disk what does not fit. The result depends on the patches alone,
not on their order, the number of shards or of threads.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from s5.command import Progress
from s5.curate import require
from s5.curate.duplicates import Pairs, find_duplicates
from s5.curate.folder import database, pattern
from s5.curate.quotas import ClusterShare, Unfilled, share_out
from s5.curate.score_shards import Shards, find_damaged, find_shards
from s5.data.files import atomic_path
from s5.errors import DataError, shorten
from s5.ranges import NonNegative, NonNegativeFloat, Positive, Share

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TABLE = "patches.parquet"
CHOSEN = "chosen"
REASONS = (
    CHOSEN,
    "unreadable",
    "no data",
    "constant",
    "blurred",
    "noise",
    "foreign",
    "duplicate",
    "entropy",
    "quota",
)
"""Values of the column `reason`: chosen, or the first of the tests, in this order, that the patch failed."""

_WRITTEN_AT_ONCE = 200_000  # patches sorted in memory; a row group of the table
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectSettings:
    """The section `select` of the configuration.

    Attributes:
        count: Patches to choose (B_u).
        unfilled: What happens to the part of a quota that its cluster cannot fill: `leave` chooses fewer
            patches, `give` takes them from the other clusters in proportion to their quotas.
        duplicates: Whether near-duplicates can be chosen; they are counted either way.
        distance: Largest number of different bits in the perceptual hashes of near-duplicates.
        min_valid: Least share of pixels with data.
        min_deviation: Least standard deviation of the grey values (0 to 255); below, a patch is constant.
        min_sharpness: Least sharpness, see :func:`s5.curate.reading.pixel_facts`; below, a patch is blurred.
        max_sharpness: Largest sharpness, above which a patch is noise; None: no limit.
        min_similarity: Least cosine similarity to the nearest cluster of the labeled images; below, a patch
            is foreign. -1: no limit, as published.
        max_entropy: Largest mean entropy in nats; None: no limit.
        memory_limit: Memory for DuckDB's data, such as 2GB. The process needs up to about 1 GB more.
        threads: CPU threads; 0: all that can be used.
    """

    count: Positive
    unfilled: Unfilled = "give"
    duplicates: Literal["keep", "drop"] = "drop"
    distance: Annotated[int, Field(ge=0, le=3)] = 2
    min_valid: Share = 0.5
    min_deviation: NonNegativeFloat = 2.0
    min_sharpness: NonNegativeFloat = 0.0
    max_sharpness: NonNegativeFloat | None = None
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    max_entropy: NonNegativeFloat | None = None
    memory_limit: str = "2GB"
    threads: NonNegative = 0


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        reasons: Number of patches for each of `REASONS`.
        clusters: What each cluster contributes.
        pairs: Number of pairs of near-duplicates among the patches that can be read and are not blank.
        cut: Highest entropy chosen, in nats; None if nothing was.
        notes: What a user should know about the result, as sentences.
    """

    reasons: dict[str, int]
    clusters: tuple[ClusterShare, ...]
    pairs: Pairs
    cut: float | None
    notes: tuple[str, ...]


def select(run: Path, labeled: Sequence[int], settings: SelectSettings) -> Selection:
    """Choose patches and write the table of all patches, atomically.

    The table `patches.parquet` has the columns of `scores` without `feature`, and `cluster`, `similarity`,
    `rank` (int64, position by entropy among the usable patches of its cluster, from 1; null if not usable)
    and `reason` (one of `REASONS`). Its rows are in order of shards and of patch numbers in them. Equal
    entropies are ordered by `key`, then by `name`.

    Args:
        run: Folder of the run. The caller must prevent that two processes write to it at once.
        labeled: Labeled images of each cluster (N_l^m).
        settings: What to choose.

    Raises:
        ConfigError: DuckDB or pyarrow are missing, or the memory limit is not an amount.
        DataError: Shards are missing, damaged or do not fit together or to `labeled`; there are fewer usable
            patches than `settings.count`; or the memory limit or the disk is too small.
    """
    shards = find_shards(run)
    with (
        database(run, settings.memory_limit, settings.threads) as connection,
        _explained(run, shards, settings),
    ):
        total = sum(shards.rows)
        with _logged(f"read {total} patches of {len(shards.scores)} shards"):
            _join(connection, shards, settings)
            _check_join(connection, run, total, len(labeled))
        with _logged("order by entropy"):
            _order(connection)
        with _logged("find near-duplicates"):
            pairs = find_duplicates(connection, settings.distance)
        with _logged("rank in clusters"):
            _rank(connection, settings)
            supply = _supply(connection, len(labeled))
            if sum(supply) < settings.count:
                raise _too_few(connection, run, len(labeled), settings.count)
            clusters = share_out(labeled, supply, settings.count, settings.unfilled)
            _decide(connection, [cluster.chosen for cluster in clusters])
        _write(connection, run / TABLE, shards)
        (cut,) = _row(connection, "SELECT max(entropy) FROM decided WHERE reason = ?", [CHOSEN])
        notes = _notes(clusters, settings)
        for note in notes:
            _logger.warning("%s", note)
        return Selection(_reasons(connection), tuple(clusters), pairs, cut, notes)


@contextmanager
def _explained(run: Path, shards: Shards, settings: SelectSettings) -> Iterator[None]:
    """Say what DuckDB's errors about memory, disk and damaged files mean."""
    duckdb = require("duckdb")
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"{run}: selecting needs more than select.memory_limit {settings.memory_limit} or the free disk "
            f"space: {error}. Raise the limit, lower select.threads, or free disk space"
        ) from error
    except duckdb.Error as error:
        if damaged := find_damaged(shards):
            raise damaged from error
        if isinstance(error, duckdb.IOException):
            raise DataError(f"{run}: {error}. Free disk space, then run the select step again") from error
        raise


@contextmanager
def _logged(what: str) -> Iterator[None]:
    _logger.info("select: %s ...", what)
    start = time.monotonic()
    yield
    _logger.info("select: %s: %.1f s", what, time.monotonic() - start)


def _join(connection: "DuckDBPyConnection", shards: Shards, settings: SelectSettings) -> None:
    """Create `judged`: what is needed of every patch, and why it cannot be used."""
    connection.execute(
        """
        CREATE TABLE judged AS
        SELECT patch, key, source, name, entropy, phash, cluster, similarity,
            CASE WHEN error IS NOT NULL OR entropy IS NULL OR NOT isfinite(entropy) THEN 'unreadable'
                 WHEN valid IS NULL OR valid < $min_valid THEN 'no data'
                 WHEN deviation IS NULL OR deviation < $min_deviation THEN 'constant'
                 WHEN sharpness < $min_sharpness THEN 'blurred'
                 WHEN sharpness > $max_sharpness THEN 'noise'
                 WHEN similarity < $min_similarity THEN 'foreign' END AS reason
        FROM read_parquet($scores) AS s LEFT JOIN read_parquet($clusters) AS c USING (patch)""",
        {
            "scores": [pattern(path) for path in shards.scores],
            "clusters": [pattern(path) for path in shards.clusters],
            "min_valid": settings.min_valid,
            "min_deviation": settings.min_deviation,
            "min_sharpness": settings.min_sharpness,
            "max_sharpness": math.inf if settings.max_sharpness is None else settings.max_sharpness,
            "min_similarity": settings.min_similarity,
        },
    )


def _check_join(connection: "DuckDBPyConnection", run: Path, total: int, clusters: int) -> None:
    rows, patches, lost, low, high = _row(
        connection,
        """
        SELECT count(*), count(DISTINCT patch), count(*) FILTER (reason IS NULL AND cluster IS NULL),
            min(cluster), max(cluster)
        FROM judged""",
    )
    if not rows == patches == total:
        raise DataError(
            f"{run}: {total} rows in scores have {patches} patch numbers, and {rows} partners in clusters: "
            "numbers are repeated. Delete scores and clusters, and run the score and cluster steps again"
        )
    if lost:
        raise DataError(
            f"{run / 'clusters'}: {lost} usable patches have no cluster; run the cluster step again"
        )
    if low is not None and not 0 <= low <= high < clusters:
        raise DataError(
            f"{run / 'clusters'}: has clusters {low} to {high}, but there are quotas for {clusters}, 0 to "
            f"{clusters - 1}; run the cluster step again"
        )


def _order(connection: "DuckDBPyConnection") -> None:
    """Create `ordered`: the comparable patches with their place in the global order."""
    connection.execute("""
        CREATE TABLE ordered AS
        SELECT patch, source, phash, entropy, cluster,
            row_number() OVER (ORDER BY entropy, key, name, source, patch) AS place
        FROM judged WHERE reason IS NULL""")


def _rank(connection: "DuckDBPyConnection", settings: SelectSettings) -> None:
    """Create `ranked`: the usable patches with their rank in their cluster."""
    if settings.duplicates == "keep":
        connection.execute("DELETE FROM duplicates")
    connection.execute(
        """
        CREATE TABLE ranked AS
        SELECT patch, cluster, row_number() OVER (PARTITION BY cluster ORDER BY place) AS rank
        FROM ordered ANTI JOIN duplicates USING (patch) WHERE entropy <= ?::DOUBLE""",
        [math.inf if settings.max_entropy is None else settings.max_entropy],
    )


def _supply(connection: "DuckDBPyConnection", clusters: int) -> list[int]:
    """Number of usable patches in each cluster."""
    counts = dict(connection.execute("SELECT cluster, count(*) FROM ranked GROUP BY cluster").fetchall())
    return [counts.get(cluster, 0) for cluster in range(clusters)]


def _decide(connection: "DuckDBPyConnection", takes: Sequence[int]) -> None:
    """Create `decided`, in order of patches: the result for every patch.

    Args:
        connection: Has `judged`, `duplicates` and `ranked`.
        takes: Patches to choose from each cluster.
    """
    connection.execute(
        "CREATE TABLE takes AS SELECT unnest(?::INTEGER[]) AS cluster, unnest(?::BIGINT[]) AS take",
        [list(range(len(takes))), list(takes)],
    )
    connection.execute("""
        CREATE TABLE decided AS
        SELECT patch, judged.cluster, similarity, entropy, rank,
            CASE WHEN reason IS NOT NULL THEN reason
                 WHEN rank <= take THEN 'chosen'
                 WHEN rank > take THEN 'quota'
                 WHEN duplicates.patch IS NOT NULL THEN 'duplicate' ELSE 'entropy' END AS reason
        FROM judged
        LEFT JOIN (SELECT patch, rank, take FROM ranked JOIN takes USING (cluster)) AS usable USING (patch)
        LEFT JOIN duplicates USING (patch)
        ORDER BY patch""")


def _reasons(connection: "DuckDBPyConnection") -> dict[str, int]:
    counts = dict(connection.execute("SELECT reason, count(*) FROM decided GROUP BY reason").fetchall())
    return {reason: counts.get(reason, 0) for reason in REASONS}


def _too_few(connection: "DuckDBPyConnection", run: Path, clusters: int, count: int) -> DataError:
    _decide(connection, [0] * clusters)
    reasons = _reasons(connection)
    usable = reasons.pop("quota")
    others = ", ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
    return DataError(
        f"{run}: {usable} usable patches, fewer than select.count {count}"
        f"{f' (not usable: {others})' if others else ''}. Lower select.count, add images, or relax "
        "the limits of the section select"
    )


def _write(connection: "DuckDBPyConnection", path: Path, shards: Shards) -> None:
    """Write the table, a group of shards at a time."""
    parquet = require("pyarrow.parquet")
    columns = ", ".join(f'scores."{name}"' for name in shards.columns)
    writer = None
    with (
        atomic_path(path) as file,
        Progress(sum(shards.rows), "select: write", "patches", _logger) as progress,
        ExitStack() as stack,
    ):
        for group in shards.groups(_WRITTEN_AT_ONCE):
            files = "[" + ", ".join("'" + pattern(shard).replace("'", "''") + "'" for shard in group) + "]"
            # The bounds let DuckDB skip the other parts of `decided`, which is in order of patches.
            low, high = _row(connection, f"SELECT min(patch), max(patch) FROM read_parquet({files})")
            # `sql` hands rows to Arrow without a copy; in DuckDB 1.5 it is slow with parameters.
            table = connection.sql(f"""
                SELECT {columns}, decided.cluster, decided.similarity, rank, reason
                FROM read_parquet({files}) AS scores JOIN decided USING (patch)
                WHERE decided.patch BETWEEN {low} AND {high} ORDER BY patch""").to_arrow_table()
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)
            progress.update(table.num_rows)


def _notes(clusters: Sequence[ClusterShare], settings: SelectSettings) -> tuple[str, ...]:
    """Remarks on the quotas."""
    notes = []
    supplied = [m for m, cluster in enumerate(clusters) if cluster.supply]
    if len(clusters) > 1 and len(supplied) == 1:
        notes.append(f"All usable patches are in cluster {supplied[0]}: the quotas have no effect.")
    short = [m for m, cluster in enumerate(clusters) if cluster.supply < cluster.quota]
    if short:
        missing = sum(clusters[m].quota - clusters[m].supply for m in short)
        outcome = "not chosen" if settings.unfilled == "leave" else "taken from other clusters"
        names = shorten(list(map(str, short)))
        notes.append(
            f"{len(short)} of {len(clusters)} clusters cannot fill their quota ({names}): {missing} patches "
            f"were {outcome}."
        )
    return tuple(notes)


def _row(connection: "DuckDBPyConnection", query: str, parameters: object = None) -> tuple:
    """The only row of a result."""
    (row,) = connection.execute(query, parameters).fetchall()
    return row
